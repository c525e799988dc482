"""`scripts/compare_methods.py`: what is wrong is told before it starts, what is killed goes on, numbers are right."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ncu_hf.errors import InputError
from ncu_hf.evaluation.outcomes import OUTCOMES_FILE, save_outcomes
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems
from ncu_hf.evaluation.suites import Measurement
from ncu_hf.objectives import METHODS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
STUDIES = sorted((SCRIPTS / "studies").glob("*.yaml"))
OF_SOME_METHODS = ("scenes_hard", "scenes_partial", "scenes_generic")
SMALL: dict[str, Any] = {
    "noise_shares": [0.4],
    "seeds": [0, 1],
    "steps": 8,
    "common": {"global_batch_size": 32, "random_crop": False, "warmup_steps": 1, "use_cpu": True},
    "reference": {"model_config": "tiny", "vocab_size": 600, "num_train_epochs": 2, "learning_rate": 1e-3},
    "fine_tuning": {"learning_rate": 1e-3, "forget_ratio": "noise"},
    "methods": {"clip": {"method": "clip"}, "ncu": {"method": "ncu"}},
    "baseline": "clip",
}


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture
def config():
    return importlib.import_module("compare_config")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        sources, writer = importlib.import_module("study_sources"), importlib.import_module("study_writer")
        folder.mkdir()
        writer.write_study(sources.scenes(160, 40, 32, 0), folder)
    return folder


@pytest.fixture
def make_units(config, study, tmp_path):
    units, writer = importlib.import_module("compare_units"), importlib.import_module("study_writer")

    def plan(**changes):
        comparison = config.parse_comparison(SMALL | changes)
        return units.plan(comparison, writer.StudyFiles.open(study), tmp_path / "out")

    return plan


# What is compared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, r"unknown key 'stepz'. Did you mean 'steps'\?"),
        ({"steps": 1}, "steps: a number of optimizer steps, at least 2, got 1"),
        ({"steps": "many"}, "steps: a number"),
        ({"seeds": [0, 0]}, "seeds: expected a list of different values"),
        ({"seeds": [-1]}, "seeds: whole numbers from 0, got -1"),
        ({"noise_shares": [1.5]}, "noise_shares: a share between 0 and 1, got 1.5"),
        ({"methods": ["clip"]}, "methods: expected lines of 'key: value'"),
        ({"methods": {"a/b": {}}}, "'a/b' cannot be the name"),
        ({"methods": {"reference": {}}}, "'reference' cannot be the name"),
        ({"methods": {"x": {"seed": 3}}}, "methods: x: seed is decided by the comparison"),
        ({"methods": {"x": {"max_steps": 3}}}, "methods: x: max_steps is decided"),
        ({"methods": {"x": {"num_train_epochs": 3}}}, "methods: x: num_train_epochs has no effect"),
        ({"methods": {"x": {"seeds": [7]}}}, "methods: x: seeds: 7 is none of those"),
        ({"common": {"model": "a"}}, "common: model is decided"),
        ({"baseline": "clipp"}, "baseline: unknown value 'clipp'. Did you mean 'clip'"),
        ({"recommended": "best"}, "recommended: unknown value"),
        ({"figure4": {"entry": "ncu", "share": [1]}}, "figure4: unknown key 'share'"),
        ({"figure4": {"entry": "no", "shares": [1]}}, "figure4: entry: unknown value 'no'"),
        ({"interpolate": ["no"]}, "interpolate: unknown value 'no'"),
        ({"shown_noise_share": 0.2}, "shown_noise_share: 0.2 is none of noise_shares"),
        ({"noise_shares": [0.0, 0.4]}, "forget_ratio_without_noise: 0.1"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(config, changes, message):
    with pytest.raises(InputError, match=message) as error:
        config.parse_comparison(SMALL | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["noise_shares", "seeds", "steps", "reference", "methods"])
def test_what_is_missing_is_named(config, missing):
    with pytest.raises(InputError, match=f"^{missing} is missing"):
        config.parse_comparison({key: value for key, value in SMALL.items() if key != missing})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"x": {"plan_wieght": 0.3}}}, r"methods: x: unknown flag '--plan_wieght'. Did you mean 'plan_w"),
        ({"methods": {"x": {"method": "nccu"}}}, "methods: x: method: unknown value 'nccu'"),
        ({"methods": {"x": {"plan_weight": 3}}}, "methods: x: --plan_weight is a share"),
        ({"reference": {"model_config": "tiny", "epochs": 3}}, "reference: unknown flag '--epochs'"),
        ({"methods": {"x": {"phase1_share": 0.01}}}, "x: phase1_share 0.01 of 8 steps leaves a phase without steps"),
    ],
)
def test_flags_are_checked_before_anything_runs(make_units, changes, message):
    units = importlib.import_module("compare_units")
    with pytest.raises(InputError, match=message) as error:
        units.check_units(make_units(**{"baseline": None, **changes}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_configurations_of_studies_are_valid(path, config, study, tmp_path):
    units, writer = importlib.import_module("compare_units"), importlib.import_module("study_writer")
    comparison = config.read_comparison(path)
    found = units.plan(comparison, writer.StudyFiles.open(study), tmp_path)
    units.check_units([unit for unit in found if unit.seed == 0 and not unit.flags.get("bf16")])
    methods = {entry.flags["method"] for entry in comparison.methods.values()}
    assert methods == set(METHODS) or path.stem in OF_SOME_METHODS, "a method is not compared"
    assert comparison.study is not None


def test_every_method_gets_as_many_steps(make_units):
    for method in METHODS:
        for share in (0.25, 0.5):
            units = make_units(methods={"x": {"method": method, "phase1_share": share}}, steps=100, baseline=None)
            flags = next(unit for unit in units if unit.entry == "x").flags
            first = flags["negative_prompt_max_steps"] or 0
            assert first + flags["max_steps"] == 100
            assert first == (100 * share if len(METHODS[method]) == 2 else 0)


def test_cells_share_their_data_and_their_reference(make_units, tmp_path):
    units = make_units(noise_shares=[0.0, 0.4], forget_ratio_without_noise=0.1, interpolate=["ncu"])
    folder = tmp_path / "out" / "runs" / "0.4" / "1"
    cell = {unit.folder.name: unit for unit in units if unit.folder.parent == folder}
    assert list(cell) == ["reference", "clip", "ncu", "ncu.interpolation"]
    for unit in cell.values():
        assert [unit.flags[name] for name in ("noise_share", "noise_seed", "seed")] == [0.4, 1, 1]
    assert cell["ncu"].flags["model"] == str(folder / "reference") and "model" not in cell["reference"].flags
    assert cell["ncu"].needs == (folder / "reference",)
    assert cell["ncu.interpolation"].needs == (folder / "reference", folder / "ncu")
    ratios = {unit.noise_share: unit.flags["forget_ratio"] for unit in units if unit.entry == "ncu"}
    assert ratios == {0.0: 0.1, 0.4: 0.4}


def test_an_entry_may_be_restricted_and_a_reference_given(make_units):
    methods = {"clip": {"method": "clip"}, "x": {"method": "ncu", "seeds": [1], "noise_shares": [0.4]}}
    units = make_units(methods=methods, reference={"model": "some/clip"}, forget_ratio_without_noise=0.2)
    assert [(unit.seed, unit.entry) for unit in units] == [(0, "clip"), (1, "clip"), (1, "x")]
    assert all(unit.flags["model"] == "some/clip" and unit.needs == () for unit in units)


def test_parts_of_the_data_have_equal_epochs(make_units):
    units = make_units(steps=100, figure4={"entry": "ncu", "shares": [0.2, 0.5, 1.0]})
    flags = {unit.entry: unit.flags for unit in units if unit.seed == 0}
    assert list(flags) == ["reference", "clip", "ncu", "ncu@20%", "ncu@50%"]
    lengths = {name: (one["negative_prompt_max_steps"], one["max_steps"]) for name, one in flags.items() if "@" in name}
    assert lengths == {"ncu@20%": (5, 15), "ncu@50%": (12, 38)}
    assert flags["ncu@20%"]["train_subset"] == "20%" and "train_subset" not in flags["ncu"]
    assert [unit.flags["subset_seed"] for unit in units if unit.entry == "ncu@20%"] == [0, 1]


# The schedule


def test_units_start_when_what_they_need_is_complete_the_longest_first(make_units):
    schedule = importlib.import_module("compare_schedule").Schedule(make_units(interpolate=["ncu"]))
    first, second = schedule.next(), schedule.next()
    assert {first.entry, second.entry} == {"reference"}
    schedule.end(second, failed=False)
    third = schedule.next()
    assert (third.seed, third.entry, third.weights) == (second.seed, "ncu", ())
    fourth = schedule.next()
    assert (fourth.seed, fourth.entry) == (second.seed, "clip")
    schedule.end(third, failed=False)
    assert schedule.next().weights


def test_what_needs_a_failed_run_is_left_out(make_units):
    schedule = importlib.import_module("compare_schedule").Schedule(make_units(interpolate=["ncu"], seeds=[0]))
    schedule.end(schedule.next(), failed=True)
    assert schedule.next() is None
    assert [unit.folder.name for unit in schedule.skipped] == ["ncu", "clip", "ncu.interpolation"]


# Numbers

LABELS = torch.tensor([0, 0, 1, 1])


def write_run(folder: Path, recalls: list[int], correct: dict[str, list[int]], before: dict | None = None) -> None:
    """Output of a run on four images with a caption each, which are found (1) or not (0), both ways alike."""
    folder.mkdir(parents=True)
    ranks = torch.tensor([1 if found else 20 for found in recalls])
    groups = torch.arange(4)
    measured = [
        Measurement("retrieval", "held-out pairs", {}, RetrievalItems((ranks, ranks), (groups, groups)), images="e"),
        *(
            Measurement("zero_shot", name, {}, ZeroShotItems(2 - torch.tensor(found), LABELS), images="i")
            for name, found in correct.items()
        ),
    ]
    save_outcomes(folder / OUTCOMES_FILE, {"after": measured})
    sides = {
        "retrieval": {"held-out pairs": {"after": {"mean_recall": sum(recalls) / 4}}},
        "zero_shot": {
            name: {"after": {"accuracy": sum(found) / 4, "primary": "accuracy"}} for name, found in correct.items()
        },
        "phases": [{"name": "contrastive", "steps": 8, "seconds": 1.5}],
        "forget_set": before or {},
    }
    (folder / "results.json").write_text(json.dumps(sides))


@pytest.fixture
def report(config, study, make_units, tmp_path):
    """Numbers of two seeds: clip, ncu and their reference, some of them missing."""
    module, writer = importlib.import_module("compare_report"), importlib.import_module("study_writer")

    def make(missing: tuple[str, ...] = (), **changes) -> dict[str, Any]:
        (tmp_path / "out").mkdir()
        outcomes = {
            "0/reference": ([1, 0, 0, 0], {"color": [1, 0, 0, 0], "size": [1, 1, 0, 0]}),
            "0/clip": ([1, 1, 0, 0], {"color": [1, 1, 0, 0], "size": [1, 1, 0, 0]}),
            "0/ncu": ([1, 1, 1, 0], {"color": [1, 1, 1, 0], "size": [1, 1, 1, 1]}),
            "1/reference": ([0, 0, 0, 0], {"color": [0, 0, 0, 0], "size": [0, 1, 0, 0]}),
            "1/clip": ([0, 1, 0, 0], {"color": [0, 1, 0, 0], "size": [0, 1, 0, 0]}),
            "1/ncu": ([1, 1, 1, 0], {"color": [0, 1, 1, 0], "size": [0, 1, 1, 1]}),
        }
        found = {"auroc": 0.75, "precision": 0.5}
        for place, (recalls, correct) in outcomes.items():
            if place not in missing:
                stages = {"before": found, "negative_prompt": found | {"auroc": 0.5}, "after": found}
                folder = tmp_path / "out" / "runs" / "0.4" / place
                write_run(folder, recalls, correct, stages if place.endswith("ncu") else None)
        comparison = config.parse_comparison(SMALL | changes)
        units = make_units(**changes)
        module.write_report(comparison, writer.StudyFiles.open(study), units, tmp_path / "out")
        return json.loads((tmp_path / "out" / "comparison.json").read_text())

    return make


def row(rows: list[dict], **wanted) -> dict:
    found = [one for one in rows if all(one[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_numbers_are_those_computed_by_hand(report):
    numbers = report(recommended="ncu")
    assert numbers["missing"] == []
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", numbers["machine"]["commit"] or 40 * "0")
    clip = row(numbers["summary"], entry="clip", metric="mean_recall")
    assert (clip["mean"], clip["n"]) == (0.375, 2)
    assert clip["sd"] == pytest.approx(0.25 / 2**0.5)
    ncu = row(numbers["summary"], entry="ncu", metric="zero_shot")
    assert ncu["by_seed"] == {"0": 0.875, "1": 0.625}
    gain = row(numbers["differences"], entry="ncu", against="clip", metric="mean_recall")
    # Differences of 1/4 and 1/2: mean 3/8, deviation 0.1768, t of one degree of freedom 12.706.
    assert gain["difference"] == 0.375 and gain["by_seed"] == {"0": 0.25, "1": 0.5}
    half = 12.706204736 * 0.1767766953 / 2**0.5
    assert gain["over_seeds"] == pytest.approx([0.375 - half, 0.375 + half])
    # Per item the mean gain is 1/2, 0, 1, 0: the interval of 4 draws of these.
    assert gain["over_items"] == pytest.approx([0, 0.75])
    zero = row(numbers["differences"], entry="ncu", against="clip", metric="zero_shot")
    assert zero["difference"] == pytest.approx((0.25 + 0.5) / 4 + (0.25 + 0.5) / 4)
    assert row(numbers["differences"], entry="clip", against="reference", metric="mean_recall")["difference"] == 0.25
    assert {(one["entry"], one["against"]) for one in numbers["differences"]} == {
        ("ncu", "clip"),
        ("ncu", "reference"),
        ("clip", "reference"),
    }


def test_tables(report, tmp_path):
    report(recommended="ncu")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| clip | 37.5 ± 17.7 | 37.5 ± 17.7 | 37.5 ± 17.7 | 37.5 ± 17.7 | 2 |" in text
    assert "| ncu | +37.5 [-121.3, +196.3] [+0.0, +75.0] |" in text
    assert "| ncu | 75.0 / 50.0 | 50.0 / 50.0 | 75.0 / 50.0 |" in text
    assert "Difference of ncu to each other entry:" in text and "Incomplete" not in text
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = row(rows, entry="ncu", against="clip", metric="mean_recall")
    assert (found["value"], found["n"], found["items_high"]) == ("0.375", "2", "0.75")
    assert row(rows, entry="clip", against="", metric="mean_recall")["value"] == "0.375"


def test_what_is_complete_is_told_and_what_is_missing(report, tmp_path):
    numbers = report(missing=("0/ncu", "1/clip"))
    assert numbers["missing"] == ["noise 0.4, seed 0, ncu", "noise 0.4, seed 1, clip"]
    assert (
        "**Incomplete: 2 runs are missing** (noise 0.4, seed 0, ncu; noise"
        in (tmp_path / "out" / "comparison.md").read_text()
    )
    # No seed has both.
    assert not [one for one in numbers["differences"] if (one["entry"], one["against"]) == ("ncu", "clip")]
    alone = row(numbers["differences"], entry="ncu", against="reference", metric="mean_recall")
    assert (alone["n"], alone["over_seeds"], alone["difference"]) == (1, None, 0.75)
    assert row(numbers["summary"], entry="ncu", metric="mean_recall")["sd"] is None
    assert "| ncu | +75.0 [-] [+25.0, +100.0] † |" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_comparison_of_which_nothing_is_complete(report, tmp_path):
    numbers = report(missing=tuple(f"{seed}/{name}" for seed in (0, 1) for name in ("reference", "clip", "ncu")))
    assert len(numbers["missing"]) == 6 and numbers["summary"] == numbers["differences"] == []
    assert "Nothing is complete." in (tmp_path / "out" / "comparison.md").read_text()


def test_plots_are_drawn_where_there_is_something_to_draw(report, tmp_path):
    report()
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {"differences.png", "detection.png"}


def test_a_complete_run_of_other_settings_is_refused(report, make_units):
    units = importlib.import_module("compare_units")
    report()
    for unit in make_units():
        if not unit.weights:
            settings = units.run_settings(unit.arguments())
            (unit.folder / "run.json").write_text(json.dumps(settings))
    units.check_units(make_units())
    changed = SMALL["fine_tuning"] | {"plan_weight": 0.5}
    with pytest.raises(InputError, match=r"seed 0, clip is complete, with other settings: plan_weight was 0.7, is 0.5"):
        units.check_units(make_units(fine_tuning=changed))


def test_two_comparisons_do_not_write_to_one_folder(tmp_path):
    script = importlib.import_module("compare_methods")
    with (
        script.locked(tmp_path),
        pytest.raises(InputError, match="another comparison is at work there"),
        script.locked(tmp_path),
    ):
        pass
    with script.locked(tmp_path):
        pass


# End to end


def command(study: Path, file: Path, output: Path, *flags: object) -> list[str]:
    words = [SCRIPTS / "compare_methods.py", file, "--study", study, "--output_dir", output, "--jobs", 2, *flags]
    return [sys.executable, *map(str, words)]


@pytest.fixture
def write_config(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes))
        return path

    return write


NUMBERS = ("summary", "differences", "interpolation", "missing")


@pytest.mark.slow
def test_a_killed_comparison_ends_in_the_same_numbers(study, write_config, tmp_path):
    file = write_config(interpolate=["ncu"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(command(study, file, whole), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean recall") == 6 and "8/8" in done.stdout

    process = subprocess.Popen(command(study, file, killed), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("3/8"):
            break
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1 and "stopped: interrupted" in told and "Traceback" not in told
    partial = json.loads((killed / "comparison.json").read_text())
    assert 0 < len(partial["missing"]) < 8

    done = subprocess.run(command(study, file, killed), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{8 - len(partial['missing'])} of 8 runs are complete" in done.stdout
    first, second = (json.loads((folder / "comparison.json").read_text()) for folder in (whole, killed))
    for name in NUMBERS:
        assert first[name] == second[name], name
    assert first["machine"]["cores"] == len(os.sched_getaffinity(0))
    stages = row(first["runs"], entry="ncu", seed=1)["forget_set"]
    assert list(stages) == ["before", "negative_prompt", "after"]
    for folder in (whole, killed):
        assert (folder / "runs" / "0.4" / "1" / "ncu.log").read_text()
        assert "noise 0.4, seed 1, ncu" in (folder / "comparison.log").read_text()


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(study, write_config, tmp_path):
    methods = {"clip": {"method": "clip"}, "long": {"method": "ncu", "prompt_length": 200}}
    file = write_config(methods=methods, seeds=[0])
    done = subprocess.run(command(study, file, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 1 and "stopped: 1 of 3 runs failed" in done.stderr
    assert "noise 0.4, seed 0, long: --prompt_length 200 leaves no room" in done.stdout
    numbers = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert numbers["missing"] == ["noise 0.4, seed 0, long"]
    assert row(numbers["differences"], entry="clip", against="reference", metric="mean_recall")


@pytest.mark.slow
def test_a_process_that_dies_costs_its_run_alone(make_units, monkeypatch):
    """Its place is taken by another one; it ends with what started it."""
    schedule = importlib.import_module("compare_schedule")
    reference = make_units(seeds=[0])[0]
    worker = schedule.Worker(0, 1, 0)
    alive = []

    def kill_soon() -> None:
        while worker._process is None:
            time.sleep(0.01)
        alive.append(worker._process)
        worker._process.kill()

    thread = schedule.threading.Thread(target=kill_soon)
    thread.start()
    ended = worker.run(reference)
    thread.join()
    assert "its process was ended by signal 9" in ended.error
    assert worker.run(reference).error is None and reference.complete
    assert worker._process is not alive[0]
    worker._process.stdin.close()
    assert worker._process.wait(timeout=60) == 0

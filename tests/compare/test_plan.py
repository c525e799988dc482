"""What `scripts/compare_methods.py` plans: what is wrong is told before it starts, and what starts when."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from ncu_hf.errors import InputError
from ncu_hf.objectives import METHODS

STUDIES = sorted((Path(__file__).resolve().parents[2] / "scripts" / "studies").glob("*.yaml"))
OF_SOME_METHODS = ("scenes_hard", "scenes_partial", "scenes_generic")


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
def test_what_makes_no_sense_is_told_in_one_line(config, small, changes, message):
    with pytest.raises(InputError, match=message) as error:
        config.parse_comparison(small | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["noise_shares", "seeds", "steps", "reference", "methods"])
def test_what_is_missing_is_named(config, small, missing):
    with pytest.raises(InputError, match=f"^{missing} is missing"):
        config.parse_comparison({key: value for key, value in small.items() if key != missing})


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


# Parts of a comparison


def chosen(units, **changes):
    nothing = {"entries": None, "seeds": None, "noise_shares": None}
    script = importlib.import_module("compare_methods")
    return script.chosen(units, argparse.Namespace(**nothing | changes))


def test_parts_come_with_what_they_start_from(make_units):
    units = make_units(noise_shares=[0.2, 0.4], interpolate=["ncu"])
    assert chosen(units) == units and len(units) == 16
    found = chosen(units, entries=["ncu"], seeds=[1], noise_shares=[0.4])
    assert [unit.folder.name for unit in found] == ["reference", "ncu", "ncu.interpolation"]
    assert {(unit.seed, unit.noise_share) for unit in found} == {(1, 0.4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": ["nccu"]}, "--entries: unknown value 'nccu'. Did you mean 'ncu'"),
        ({"seeds": [0, 7]}, "--seeds 7: none of 0, 1"),
        ({"noise_shares": [0.5]}, "--noise_shares 0.5: none of 0.4"),
    ],
)
def test_parts_that_are_not_there_are_told(make_units, changes, message):
    with pytest.raises(InputError, match=message):
        chosen(make_units(), **changes)


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

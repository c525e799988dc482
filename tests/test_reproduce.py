"""Every command of docs/reproduction.md is what the recipes and scripts understand, and runs on stand-in data."""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from ncu_hf.cli import parse_arguments
from ncu_hf.data import clean_caption, open_pairs
from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.evaluation.sets.open import open_suite
from ncu_hf.evaluation.sets.registry import BENCHMARK_SETS
from ncu_hf.reporting.published import published_numbers

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
SECTIONS = {
    title.lower().replace(" ", ""): re.findall(r"^```bash\n(.+?)\n```", text, flags=re.MULTILINE | re.DOTALL)
    for title, text in re.findall(r"^## ((?:Table|Figure) \d)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
}
FULL = {name: commands[0] for name, commands in SECTIONS.items()}
STAND_IN = {name: commands[-1] for name, commands in SECTIONS.items()}
PAIRS, IMAGES = 192, 12


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce") / "stand-in"
    words = [sys.executable, str(SCRIPTS / "stand_in.py"), str(folder), "--pairs", str(PAIRS), "--images", str(IMAGES)]
    subprocess.run(words, check=True, capture_output=True)
    return folder


@pytest.fixture
def reproduce(monkeypatch, capsys, tmp_path):
    """Run reproduce.py in this process, below a temporary folder; returns what it prints."""
    script = importlib.import_module("reproduce")

    def call(*arguments: object) -> str:
        words = ["reproduce.py", *map(str, arguments), "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        script.main()
        return capsys.readouterr().out

    return call


def module(name: str) -> ModuleType:
    """A script by path: `import evaluate` is a library."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def arguments_of(command: str, stand_in: Path | None = None) -> list[str]:
    """What follows reproduce.py in a command of the page, with the stand-in folder of this test."""
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "scripts/reproduce.py")
    if stand_in is not None:
        arguments[arguments.index("--stand_in") + 1] = str(stand_in)
    return arguments


def commands(shown: str) -> list[list[str]]:
    return [shlex.split(line) for line in shown.splitlines() if not line.startswith(("#", "mkdir -p "))]


def unwrap(words: list[str]) -> list[str]:
    """Program and arguments behind a launcher, whose own flags are parsed by itself."""
    if words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(words[2:])
    elif words[0] == "torchrun":
        parsed = get_args_parser().parse_args(words[1:])
    else:
        return words[1:] if words[0] == "python" else words
    return [parsed.training_script, *parsed.training_script_args]


def check_flags(words: list[str], monkeypatch) -> str:
    """Parse a printed command as the program would; returns the program."""
    name, *arguments = unwrap(words)
    if "recipes" in name:
        parse_arguments([*arguments, "--use_cpu", "true"])  # bf16 needs a GPU to pass the arguments' own check
    elif name.endswith((f"{os.sep}evaluate.py", f"{os.sep}reproduce_curves.py")):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module(Path(name).stem).parse()
    else:
        assert name == "hf"
        shown = subprocess.run([sys.executable, "-m", "huggingface_hub.cli.hf", arguments[0], "--help"], **CAPTURED)
        assert [word for word in arguments if word.startswith("--") and word not in shown.stdout] == []
        return name
    assert Path(name).is_file()
    return Path(name).name


CAPTURED = {"capture_output": True, "text": True, "check": True, "env": os.environ | {"COLUMNS": "200"}}


def test_the_page_has_one_section_a_table_and_figure():
    tables = importlib.import_module("reproduce_tables")
    assert list(SECTIONS) == list(tables.EXPERIMENTS)
    assert all(len(found) == 2 for found in SECTIONS.values())
    assert all(arguments_of(command)[0] == name for name, command in (FULL | STAND_IN).items())
    assert all("--stand_in stand-in" in command for command in STAND_IN.values())
    assert "The full commands have not been run" in PAGE


def test_rows_and_counts_are_those_of_the_paper():
    tables = importlib.import_module("reproduce_tables")
    published = published_numbers("paper")
    for number in range(1, 6):
        printed = [entry for entry in published if entry["table"] == number]
        rows = {(entry["training_data"].lower(), entry["architecture"].lower().replace("/", "-")) for entry in printed}
        assert set(tables.EXPERIMENTS[f"table{number}"].rows) == rows
        section = PAGE.split(f"## Table {number}\n")[1].split("\n## ")[0]
        stated = re.search(r"(?:all|the) (\d+) numbers", section)
        assert int(stated[1]) == len(printed)


@pytest.mark.parametrize("name", FULL)
def test_full_commands(name, reproduce, monkeypatch):
    tables = importlib.import_module("reproduce_tables")
    experiment = tables.EXPERIMENTS[name]
    shown = commands(reproduce(*arguments_of(FULL[name]), "--dry_run"))
    programs = Counter(check_flags(words, monkeypatch) for words in shown)
    rows = len(experiment.rows)
    assert programs["clip.py"] == programs["evaluate.py"] == rows
    trained = sum(count for program, count in programs.items() if program.startswith("ncu_"))
    assert trained == rows * (len(experiment.methods) + len(experiment.subsets))
    measured = [words for words in shown if any(word.endswith("evaluate.py") for word in words)]
    against = {word for words in measured for word in words if word.startswith("paper/")}
    expected = set() if name == "figure5" else {f"paper/{data}/{model}" for data, model in experiment.rows}
    assert against == expected


@pytest.mark.parametrize("name", STAND_IN)
def test_stand_in_commands(name, reproduce, monkeypatch, stand_in):
    shown = reproduce(*arguments_of(STAND_IN[name], stand_in), "--dry_run")
    for words in commands(shown):
        check_flags(words, monkeypatch)
    assert "--against" not in shown and "clip-benchmark" not in shown
    written = re.findall(r"--(?:output_dir|json|csv|markdown|plot|similarity_plot|output) (\S+)", shown)
    assert written and all("/stand-in/" in path for path in written)


def test_several_processes(reproduce, monkeypatch, stand_in):
    asked = ("table2", "--training_data", "cc12m", "--processes", 2, "--dry_run")
    shown = commands(reproduce(*asked))
    assert all("--num_processes 2" in shlex.join(words) for words in shown)
    training = [words for words in shown if "recipes" in shlex.join(words)]
    assert all("--chunk_size 256" in shlex.join(words) for words in training)
    shown = commands(reproduce(*asked, "--stand_in", stand_in))
    assert [words[0] for words in shown] == ["torchrun"] * 3
    for words in shown:
        check_flags(words, monkeypatch)


def test_tables_share_models(reproduce):
    narrowed = ("--training_data", "cc3m", "--architecture", "vit-b-32", "--dry_run")
    trainings = [
        [words for words in commands(reproduce(name, *narrowed)) if "recipes" in shlex.join(words)]
        for name in ("table1", "table3", "table5", "figure4")
    ]
    assert trainings[0] == trainings[1]
    assert all(words in trainings[2] and words in trainings[3] for words in trainings[0])


def test_a_reference_that_is_there_is_taken(reproduce):
    row = ("--training_data", "cc3m", "--architecture", "vit-b-16")
    shown = reproduce("table1", *row, "--reference", "me/clip", "--dry_run")
    assert "clip.py" not in shown and "--model me/clip" in shown and "--models me/clip " in shown
    with pytest.raises(InputError, match="--reference is one model"):
        reproduce("table1", "--training_data", "cc3m", "--reference", "me/clip", "--dry_run")


def test_wrong_input(reproduce, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"the paper has no row for yfcc15m-r.*cc3m vit-b-16; cc3m vit-b-32"):
        reproduce("table5", "--training_data", "yfcc15m-r", "--dry_run")
    with pytest.raises(InputError, match=r"no stand-in data\. Write it: python scripts/stand_in\.py"):
        reproduce("table1", "--stand_in", tmp_path)
    with pytest.raises(InputError, match="--processes must be at least 1, got 0"):
        reproduce("table1", "--processes", 0, "--dry_run")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="no GPU here"):
        reproduce("table1")
    assert not (tmp_path / "out").exists()


# --- running -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_step(tmp_path):
    """A step that appends a line to a file, its result."""
    steps = importlib.import_module("reproduce_steps")

    def make(name: str, code: str = "", **fields):
        result = tmp_path / f"{name}.txt"
        program = f"import sys; print(sys.argv[2:], file=open({str(result)!r}, 'a')); {code}"
        return steps.Step(name, f"Do {name}", ("python",), ("-c", program, name), result, **fields)

    return make


def test_complete_steps_are_skipped_and_a_failure_stops(make_step, tmp_path, capfd):
    run = importlib.import_module("reproduce_run").run
    first, broken, last = make_step("first"), make_step("broken", "sys.exit(7)"), make_step("last")
    with pytest.raises(TrainingStopped, match=r"Step 2 of 3 failed with exit code 7: python -c .* broken"):
        run([first, broken, last], tmp_path / "out")
    assert not last.result.exists()
    run([first, make_step("broken"), last], tmp_path / "out")
    assert [len(step.result.read_text().splitlines()) for step in (first, broken, last)] == [1, 2, 1]
    assert "Step 1 of 3 is complete: Do first" in capfd.readouterr().out
    first.result.unlink()
    run([first, last], tmp_path / "out")
    assert first.result.is_file()


def test_a_killed_training_is_resumed(make_step, tmp_path):
    run = importlib.import_module("reproduce_run").run
    folder = tmp_path / "model"
    step = make_step("train", run_folder=folder)
    assert "--resume_from_checkpoint" not in str(step)
    run([step], tmp_path / "fresh")
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    run([step], tmp_path / "killed")
    assert step.result.read_text().splitlines() == ["[]", "['--resume_from_checkpoint', 'true']"]


def test_other_arguments_are_refused_but_other_processes_are_not(make_step, tmp_path):
    run = importlib.import_module("reproduce_run").run
    step = make_step("step")
    run([step], tmp_path / "out")
    run([make_step("step", memory=("--chunk_size", "8"))], tmp_path / "out")
    assert step.result.read_text().splitlines() == ["[]"]
    with pytest.raises(InputError, match="was made by other arguments"):
        run([make_step("step", "pass")], tmp_path / "out")


def test_one_reproduction_at_a_time(make_step, tmp_path):
    reproduction = importlib.import_module("reproduce_run")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another reproduction is at work there"):
            reproduction.run([make_step("step")], tmp_path / "out")
    reproduction.run([make_step("step")], tmp_path / "out")


def test_a_signal_reaches_the_command(make_step, tmp_path):
    run = importlib.import_module("reproduce_run").run
    step = make_step("sleeps", "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    with pytest.raises(TrainingStopped, match="was ended by signal 15"):
        run([step], tmp_path / "out")
    assert threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- stand-in data -----------------------------------------------------------------------------------------------


def test_evaluation_sets_have_the_layout_of_the_real_ones(stand_in):
    folders = sorted((stand_in / "sets").iterdir())
    assert [folder.name for folder in folders] == sorted(f"{name}-stand-in" for name in BENCHMARK_SETS)
    for found in open_suite(map(str, folders)):
        name = found.origin.name
        known = BENCHMARK_SETS[name.removesuffix("-stand-in")]
        assert len(found.images) == IMAGES and not found.skipped
        if known.classes is None:
            assert Counter(Counter(found.caption_groups.tolist()).values()) == {5: IMAGES - 2, 6: 2}
        else:
            assert len(found.train().images) == IMAGES and found.train().origin.stamp != found.origin.stamp
            assert found.labels.max() < len(found.classes) and found.primary == "accuracy"


def test_training_pairs_have_the_formats_of_the_real_ones(stand_in):
    tars = open_pairs(str(stand_in / "cc3m" / "cc3m-train-*.tar"), image_column="jpg", caption_column="txt")
    tokens = open_pairs(
        str(stand_in / "yfcc15m-r" / "*.parquet"),
        image_column="images",
        caption_column="texts",
        caption_tokenizer=str(stand_in / "tokenizer"),
    )
    assert len(tars) == len(tokens) == PAIRS
    # A tokenizer puts its own blanks before a comma.
    words = [[re.findall(r"\w+", clean_caption(source[i].caption)) for i in range(PAIRS)] for source in (tars, tokens)]
    assert words[0] == words[1]
    about = open_pairs(str(stand_in / "cc3m" / "cc3m-train-*.tar"), image_column="jpg", caption_column="mismatched")
    wrong = sum(about[i].caption is True for i in range(PAIRS))
    assert wrong == pytest.approx(0.3 * PAIRS, abs=2)
    (validation,) = open_suite([str(stand_in / "cc3m-validation-stand-in")])
    assert len(validation.images) == IMAGES and validation.origin.name == "cc3m-validation-stand-in"


def test_stand_in_is_never_written_over(stand_in, monkeypatch):
    script = module("stand_in")
    monkeypatch.setattr(sys, "argv", ["stand_in.py", str(stand_in)])
    with pytest.raises(InputError, match="exists; give a new folder"):
        script.main()


# --- curves ------------------------------------------------------------------------------------------------------


def test_curves_are_the_numbers_of_the_comparison(tmp_path, monkeypatch):
    curves = module("reproduce_curves")
    results = {
        model: {
            "zero_shot": {"imagenet1k": {"accuracy": share, "interval": {"accuracy": [share - 0.01, share + 0.02]}}},
            "retrieval": {"mscoco_5k": {"mean_recall": share, "interval": {"mean_recall": [share - 0.01, share]}}},
        }
        for model, share in (("clip", 0.16), ("a", 0.18), ("b", 0.2))
    }
    assert curves.estimate(results, "a", "zero_shot", "imagenet1k", "accuracy") == pytest.approx((18, 17, 20))
    with pytest.raises(InputError, match=r"retrieval of a: unknown value 'flickr'\. Known: mscoco_5k"):
        curves.estimate(results, "a", "retrieval", "flickr", "mean_recall")
    (tmp_path / "comparison.json").write_text(json.dumps({"results": results}))
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda axes, reference, curve: drawn.append((reference, curve)))
    words = ["curves", str(tmp_path / "comparison.json"), "--reference", "clip", "--points", "b=3000000", "a=500000"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "figure.png")])
    curves.main()
    (reference, curve), (_, recalls) = drawn
    assert reference == pytest.approx((16, 15, 18))
    assert list(curve) == [500_000, 3_000_000] and [round(value[0]) for value in curve.values()] == [18, 20]
    assert [round(value[2]) for value in recalls.values()] == [18, 20]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="expected MODEL=PAIRS"):
        curves.point("a=many")


# --- everything --------------------------------------------------------------------------------------------------


def run_stand_in(command: str, stand_in: Path, output: Path) -> subprocess.CompletedProcess:
    arguments = [*arguments_of(command, stand_in), "--output_dir", str(output)]
    done = subprocess.run([sys.executable, str(SCRIPTS / "reproduce.py"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_cheapest_table_runs_on_stand_in_data(stand_in, tmp_path, reproduce):
    done = run_stand_in(STAND_IN["table2"], stand_in, tmp_path / "out")
    assert "Step 3 of 3" in done.stdout and "STAND-IN DATA, no result" in done.stdout
    folder = tmp_path / "out" / "stand-in" / "table2" / "cc12m" / "vit-b-32"
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [model["name"] for model in comparison["models"]] == ["clip-stand-in", "ncu-stand-in"]
    sets = list(comparison["results"]["ncu-stand-in"]["retrieval"])
    assert sets == ["flickr30k_1k-stand-in", "mscoco_5k-stand-in", "mscoco_5k_all_captions-stand-in"]
    assert comparison["paired"] and not comparison.get("published")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("comparison.csv", "comparison.json", "comparison.md", "differences.png")
    ]
    assert reproduce(*arguments_of(STAND_IN["table2"], stand_in)).count("is complete") == 3


@pytest.mark.slow
def test_every_stand_in_command_of_the_page_runs(stand_in, tmp_path):
    for name, command in STAND_IN.items():
        done = run_stand_in(command, stand_in, tmp_path)
        assert "STAND-IN DATA, no result" in done.stdout, name
    pictures = sorted(path.name for path in (tmp_path / "stand-in").glob("figure*/*/*/figure*.png"))
    assert pictures == ["figure4.png", "figure5.png"]
    for path in (tmp_path / "stand-in").glob("*/*/*/comparison.json"):
        comparison = json.loads(path.read_text())
        assert not comparison.get("published") and all("stand-in" in one["name"] for one in comparison["models"])

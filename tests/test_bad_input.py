"""Wrong input ends in one line on stderr and exit code 2, before any training, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from ncu_hf import workspace
from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.cli import parse_arguments
from ncu_hf.demo import main as demo_main
from ncu_hf.errors import InputError
from ncu_hf.recipe import main
from ncu_hf.trainer import NCUTrainer
from ncu_hf.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}


@pytest.fixture
def options(scene_options, tmp_path) -> dict:
    """A command that would run."""
    lengths = {"max_steps": 1, "negative_prompt_max_steps": 1, "warmup_steps": 0}
    return {**scene_options, **lengths, "output_dir": tmp_path / "output"}


@pytest.fixture
def refused(options, tmp_path, monkeypatch, capfd, words) -> Callable[..., str]:
    """Run the recipe in this process with some options changed; returns the one line that it must end in."""
    monkeypatch.setattr(NCUTrainer, "train", lambda *args, **kwargs: pytest.fail("a training was started"))

    def run(**changes) -> str:
        output = Path(changes.get("output_dir", options["output_dir"]))
        existed, before = output.exists(), snapshot(output)
        monkeypatch.setattr(sys, "argv", ["ncu.py", *words({**options, **changes})])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main({})
        printed, said = capfd.readouterr()
        assert stopped.value.code == 2
        assert printed == ""
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        assert (output.exists(), snapshot(output)) == (existed, before)
        return said

    return run


def assert_names(line: str, *parts: object) -> None:
    assert [part for part in map(str, parts) if part not in line] == [], line


def test_the_command_itself_is_accepted(options, monkeypatch, words):
    """Without this, all tests below could pass for another reason than the one they name."""

    class Started(Exception):
        pass

    def train(*args, **kwargs):
        raise Started

    monkeypatch.setattr(NCUTrainer, "train", train)
    monkeypatch.setattr(sys, "argv", ["ncu.py", *words(options)])
    with pytest.raises(Started):
        main({})


# Flags


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"forget_rato": 0.1}, ["'--forget_rato'", "'forget_ratio'"]),
        ({"method": "ncuu"}, ["--method", "'ncuu'", "'ncu'"]),
        ({"formulation": "papers"}, ["--formulation", "'papers'", "'paper'"]),
        ({"forget_ratio": 1.0}, ["--forget_ratio", "1.0"]),
        ({"forget_ratio": -0.5}, ["--forget_ratio", "-0.5"]),
        ({"forget_ratio": "nan"}, ["--forget_ratio", "nan"]),
        ({"global_batch_size": 1}, ["--global_batch_size", "at least 2"]),
        ({"chunk_size": 17}, ["--chunk_size 17", "16 rows"]),
        ({"chunk_size": 0}, ["--chunk_size 0"]),
        ({"gradient_accumulation_steps": 0}, ["--gradient_accumulation_steps", "0"]),
        ({"prompt_length": 30}, ["--prompt_length 30", "32 positions", "at most 29"]),
        ({"frozen_text_blocks": 3}, ["--frozen_text_blocks 3", "2 blocks"]),
        ({"num_train_epochs": 0, "max_steps": None}, ["unlearning", "no step"]),
        ({"model": None}, ["--model", "--model_config"]),
        ({"model_config": "tiny"}, ["--model", "--model_config"]),
        ({"model": None, "model_config": "tinny"}, ["'tinny'", "'tiny'"]),
        ({"train_data": None}, ["--train_data"]),
        ({"train_data": "absent/pairs.csv"}, ["absent/pairs.csv", "no such file"]),
        ({"negative_prompt": "absent/prompt/x"}, ["--negative_prompt absent/prompt/x"]),
        ({"resume_from_checkpoint": "out/checkpoint-4"}, ["--resume_from_checkpoint", "out/checkpoint-4", "true"]),
        ({"gradient_checkpointing_kwargs": "{}"}, ["--gradient_checkpointing_kwargs", "every block"]),
        ({"eval_strategy": "steps"}, ["--eval_strategy", "--eval_data"]),
        ({"report_to": "nothing_known"}, ["nothing_known", "tensorboard"]),
        ({"optim": "adamw_torchh"}, ["adamw_torchh"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["min_lr"]),
        ({"lr_scheduler_kwargs": '{"nonsense": 1}'}, ["nonsense"]),
        ({"dataloader_prefetch_factor": 4}, ["--dataloader_prefetch_factor", "two batches ahead"]),
        ({"hub_strategy": "end"}, ["--hub_strategy"]),
    ],
)
def test_flags(changes, named, refused):
    assert_names(refused(**changes), *named)


@pytest.mark.parametrize("flag", ["model", "model_config", "train_data", "eval_data"])
def test_the_demonstration_has_inputs_of_its_own(flag, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["ncu_demo.py", f"--{flag}", "mine", "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        demo_main()
    assert stopped.value.code == 2
    assert_names(capfd.readouterr().err, f"error: --{flag} mine", "recipes/ncu.py")
    assert not (tmp_path / "out").exists()


def test_data_smaller_than_a_batch(refused):
    assert_names(refused(global_batch_size=128), "96 record(s)", "128")
    assert_names(refused(train_limit=7), "7 record(s)", "16")


# Training data


@pytest.fixture
def csv_file(tmp_path) -> Callable[..., Path]:
    """Write a csv of the given lines, beside one readable image, `a.png`."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")

    def write(*lines: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "pairs.csv"
        path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
        return path

    return write


ROWS = [f"a.png,caption {i}" for i in range(20)]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["image,text", *ROWS], ["'caption'", "--caption_column", "Columns: image, text"]),
        (["img,caption", *ROWS], ["'image'", "--image_column", "'img'", "Columns: img, caption"]),
        (["image,caption"], ["empty", "0 rows"]),
        ([], ["empty"]),
        (["image,caption", *ROWS, "a.png,one,two"], ["line 22", "3 fields", "2"]),
        (["image,caption", *ROWS, "a.png"], ["line 22", "1 fields", "2"]),
        (["image;caption", *(row.replace(",", ";") for row in ROWS)], ["';'", "--delimiter"]),
        (["image,caption", *ROWS, 'a.png,"no end'], ["pairs.csv", "line 22"]),
        (["image,caption", *(f"{i}.png,caption {i}" for i in range(120))], ["100 rows", "missing_file", "0.png"]),
        (["image,caption", *(["a.png,"] * 120)], ["no readable caption", "100 rows", "empty_caption"]),
    ],
)
def test_csv(lines, named, refused, csv_file):
    assert_names(refused(train_data=csv_file(*lines)), "pairs.csv", *named)


def test_csv_that_is_not_utf8(refused, csv_file):
    path = csv_file("image,caption", *ROWS, "a.png,ein schöner Tag", encoding="latin1")
    assert_names(refused(train_data=path), "pairs.csv", "line 22", "UTF-8")


@pytest.mark.parametrize("rows", [0, 120])
def test_parquet_without_a_readable_image(rows, refused, tmp_path):
    path = tmp_path / "pairs.parquet"
    schema = pa.schema({"image": pa.binary(), "caption": pa.string()})
    pq.write_table(pa.table({"image": [b"no image"] * rows, "caption": ["a"] * rows}, schema=schema), path)
    line = refused(train_data=path)
    assert_names(line, "pairs.parquet", *(["100 rows", "undecodable"] if rows else ["empty", "0 rows"]))


def test_a_table_that_is_none(refused, tmp_path):
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 but not really")
    assert_names(refused(train_data=tmp_path / "pairs.parquet"), "pairs.parquet", "not a readable parquet")


# Evaluation data


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["image,caption", *(f"{name}.png,the same" for name in "ab")], ["2 images", "1 different captions"]),
        (["image,caption", "a.png,one", "a.png,two"], ["1 images", "2 different captions"]),
        (["image,caption", "a.png,one", "absent.png,two"], ["decoded", "1 of 2", "missing_file"]),
        (["image,caption", "absent.png,one"], ["no readable image"]),
        (["image,text", "a.png,one", "b.png,two"], ["'caption'", "Columns: image, text"]),
    ],
)
def test_evaluation_data(lines, named, refused, csv_file, tmp_path):
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "b.png")
    assert_names(refused(eval_data=csv_file(*lines)), "pairs.csv", *named)


# Models


def change_json(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_processor(folder: Path) -> None:
    for path in [*folder.glob("*token*"), folder / "processor_config.json"]:
        path.unlink()


def custom_code(folder: Path) -> None:
    change_json(folder / "config.json", "model_type", value="unheard_of")
    change_json(folder / "config.json", "auto_map", value={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\n")


BROKEN = {
    "bert": (lambda f: BertConfig().save_pretrained(f), ["'bert'", "'clip'"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no model"]),
    "config not json": (lambda f: (f / "config.json").write_text("{"), ["config.json"]),
    "config of wrong type": (
        lambda f: change_json(f / "config.json", "text_config", "hidden_size", value="many"),
        ["hidden_size", "many"],
    ),
    "custom code": (custom_code, ["custom code"]),
    "pickle": (to_pickle, ["safetensors"]),
    "weights missing": (lambda f: change_weights(f, lambda w: w.pop("text_projection.weight")), ["text_projection"]),
    "weights of another shape": (
        lambda f: change_weights(f, lambda w: w.update({"text_projection.weight": torch.zeros(5, 4)})),
        ["text_projection.weight", "(5, 4)", "(32, 32)"],
    ),
    "weights cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        ["weights cannot be loaded"],
    ),
    "no processor": (no_processor, ["CLIPProcessor"]),
    "tokenizer broken": (lambda f: (f / "tokenizer.json").write_text("{}"), ["CLIPProcessor"]),
    "tokenizer of another length": (
        lambda f: change_json(f / "tokenizer_config.json", "model_max_length", value=77),
        ["32 positions", "model_max_length", "77"],
    ),
    "other end token": (
        lambda f: change_json(f / "config.json", "text_config", "eos_token_id", value=7),
        ["token 7"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_models(name, refused, clip_folder, tmp_path):
    change, named = BROKEN[name]
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    change(folder)
    assert_names(refused(model=folder), f"--model {folder}", *named)
    assert not (folder / "executed").exists()


def test_a_model_folder_that_does_not_exist(refused, tmp_path):
    assert_names(refused(model=tmp_path / "absent"), f"--model {tmp_path / 'absent'}", "no model")


# The output folder


def test_output_below_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert_names(refused(output_dir=tmp_path / "file" / "run"), "--output_dir", tmp_path / "file", "not a folder")
    assert_names(refused(output_dir=tmp_path / "file"), "--output_dir", tmp_path / "file", "not a folder")
    assert (tmp_path / "file").read_text() == "kept"


def test_output_that_holds_files(refused, tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    assert_names(refused(), "not empty", "--resume_from_checkpoint", "--overwrite_output_dir")
    assert_names(refused(resume_from_checkpoint="true"), "holds no run")
    assert_names(refused(overwrite_output_dir="true"), "no earlier run", "nothing")


def test_the_output_folder_is_looked_at_before_the_data(refused, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "x").touch()
    assert_names(refused(train_data="absent.csv"), "not empty")


def test_resume_with_other_settings(refused, options, words):
    arguments, _ = parse_arguments(words(options))
    Workspace(options["output_dir"]).open(arguments, "fingerprint", None)
    line = refused(resume_from_checkpoint="true", forget_ratio=0.2, learning_rate=1e-3)
    assert_names(line, "other settings", "forget_ratio was 0.1, is 0.2", "learning_rate was 5e-05, is 0.001")
    assert_names(refused(resume_from_checkpoint="true", data_seed=3), "data_seed")


def test_what_only_stops_a_run_may_change(refused, options, words):
    arguments, _ = parse_arguments(words(options))
    Workspace(options["output_dir"]).open(arguments, "fingerprint", None)
    changes = {"data_timeout": 1800, "max_bad_fraction": 0.5}
    assert_names(refused(resume_from_checkpoint="true", **changes), "has changed")  # the data, and no setting


def test_precision_is_that_of_the_launcher_too(refused, options, words, monkeypatch):
    arguments, _ = parse_arguments(words(options))
    Workspace(options["output_dir"]).open(arguments, "fingerprint", None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert_names(refused(resume_from_checkpoint="true"), "bf16 was False, is True")


def test_a_folder_that_another_machine_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "_PATIENCE", 0)
    with pytest.raises(InputError, match=r"--output_dir .* a folder that all of them share"):
        Workspace(tmp_path / "run").check_shared(torch.device("cpu"))


def test_a_run_of_an_earlier_release_had_the_settings_that_it_does_not_name(refused, options, words):
    arguments, _ = parse_arguments(words(options))
    Workspace(options["output_dir"]).open(arguments, "fingerprint", None)
    path = options["output_dir"] / "run.json"
    settings = read_json(path)
    for name in ("noise_kind", "noise_class_column", "forget_window", "negative_rank"):
        del settings[name]
    write_json(path, settings)
    assert_names(refused(resume_from_checkpoint="true"), "has changed")  # the data, and no setting
    line = refused(resume_from_checkpoint="true", noise_share=0.3, noise_kind="hard")
    assert_names(line, "noise_share was 0.0, is 0.3", "noise_kind was 'shuffled', is 'hard'")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"noise_kind": "hrad"}, ["--noise_kind", "'hrad'", "'hard'", "generic, partial"]),
        ({"noise_class_column": "color"}, ["--noise_class_column color", "--noise_kind hard", "not shuffled"]),
        ({"noise_kind": "hard", "noise_class_column": "colour"}, ["'colour'", "--noise_class_column", "'color'"]),
        ({"noise_kind": "hard", "streaming": "true"}, ["--noise_share", "indexed"]),
    ],
)
def test_noise_that_cannot_be_injected(changes, named, refused):
    assert_names(refused(noise_share=0.3, **changes), *named)


def test_resume_with_other_data_under_the_same_name(refused, options, words):
    arguments, _ = parse_arguments(words(options))
    Workspace(options["output_dir"]).open(arguments, "fingerprint of what was there", None)
    line = refused(resume_from_checkpoint="true")
    assert_names(line, "--resume_from_checkpoint", f"--train_data {options['train_data']} has changed")


@pytest.mark.parametrize("flag", ["model", "train_data", "negative_prompt"])
def test_overwriting_the_input_of_the_run(flag, refused, options, words):
    folder = options["output_dir"]
    arguments, _ = parse_arguments(words(options))
    Workspace(folder).open(arguments, "fingerprint", None)
    (folder / "inside").mkdir()
    line = refused(**{flag: folder / "inside"}, overwrite_output_dir="true")
    assert_names(line, "--overwrite_output_dir", f"--{flag} {folder / 'inside'}")


# The command as a user runs it


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"forgetratio": 0.1}, ["'--forgetratio'", "'forget_ratio'"], marks=pytest.mark.slow),
        pytest.param(
            {"model": "openai/clip-vit-base-patch32-absent"},
            ["openai/clip-vit-base-patch32-absent", "no model"],
            marks=pytest.mark.slow,
        ),
        ({"caption_column": "captoin"}, ["'captoin'", "'caption'", "image"]),
    ],
)
def test_command(changes, named, options, words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/ncu.py"), *words({**options, **changes})], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert_names(done.stderr, *named)
    assert not options["output_dir"].exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"forgetratio": 0.1}, "'forget_ratio'"),
        pytest.param({"caption_column": "captoin"}, "'captoin'", marks=pytest.mark.slow),
        pytest.param({"output_dir": "setup.cfg/below"}, "not a folder", marks=pytest.mark.slow),
    ],
)
def test_two_processes_say_it_once(changes, named, options, launch, words):
    """Where all processes fail, and where only the first one does and the other waits for it."""
    done = launch(2, "recipes/ncu.py", *words({**options, **changes}), check=False)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert named in errors[0]
    assert not options["output_dir"].exists()

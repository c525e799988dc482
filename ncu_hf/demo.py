"""The offline demonstration: draw scenes, train a reference CLIP on noisy pairs, fine-tune it, measure both."""

from __future__ import annotations

import copy
import dataclasses
import logging
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from ncu_hf.checkpoint import write_atomically
from ncu_hf.cli import Arguments, parse_arguments, run_main
from ncu_hf.config import MethodArguments, ModelArguments
from ncu_hf.data.scenes import ATTRIBUTES, write_scenes
from ncu_hf.distributed import barrier, gather_json
from ncu_hf.errors import InputError
from ncu_hf.evaluation import CaptionedSet, LabelledSet
from ncu_hf.recipe import run, set_up_logging
from ncu_hf.workspace import resuming

logger = logging.getLogger(__name__)

_OUTPUT = "outputs/demo"

# Rate and plan weight of phase 2 were chosen on these scenes (README, "Scenes"): the paper's 5e-5 and 0.7 are for
# towers that saw millions of pairs.
DEFAULTS: dict[str, Any] = {
    "output_dir": _OUTPUT,
    "noise_share": 0.3,
    "image_column": "image",
    "caption_column": "caption",
    "random_crop": False,
    "global_batch_size": 128,
    "forget_ratio": 0.3,
    "plan_weight": 0.3,
    "learning_rate": 1e-3,
    "negative_prompt_epochs": 2,
    "num_train_epochs": 4,
    "warmup_steps": 0.1,
    "save_steps": 100,
    "logging_steps": 20,
}


@dataclass
class SceneArguments:
    """Flags of the demonstration alone."""

    train_scenes: int = field(default=8000, metadata={"help": "Pairs to train on."})
    eval_scenes: int = field(default=1000, metadata={"help": "Clean pairs to measure on."})
    scene_seed: int = field(default=0, metadata={"help": "Seed of the scenes."})
    reference_epochs: float = field(default=16, metadata={"help": "Epochs of the reference CLIP, from scratch."})
    reference_learning_rate: float = field(default=1e-3, metadata={"help": "Its learning rate."})

    def __post_init__(self):
        for name, value in (("train_scenes", self.train_scenes), ("eval_scenes", self.eval_scenes)):
            if value < 2:
                raise InputError(f"--{name} must be at least 2, got {value}.")


def main(description: str | None = None) -> None:
    """Entry point of `recipes/ncu_demo.py`."""

    def parse_and_run() -> None:
        arguments, scenes = parse_arguments(defaults=DEFAULTS, description=description, extra=SceneArguments)
        set_up_logging(arguments.training)
        run_demo(arguments, scenes)

    run_main(parse_and_run)


def run_demo(arguments: Arguments, scenes: SceneArguments) -> dict[str, Any]:
    """Reference, then fine-tuning, below one output folder: `data/`, `reference/`, `result/`.

    Returns:
        `dict`: results of the fine-tuning, see `ncu_hf.reporting.results`.
    """
    _refuse_own_inputs(arguments)
    if arguments.training.plan:
        return _plan(arguments, scenes)
    started = time.perf_counter()
    folder = _output_folder(arguments)
    train, evaluation = _draw(arguments, scenes, folder / "data")
    arguments.data.train_data, arguments.data.eval_data = str(train), str(evaluation)
    attributes = partial(attribute_sets, evaluation)
    noise = f"{arguments.data.noise_share:.0%} of them with wrong captions ({arguments.data.noise_kind})"
    print_once(arguments, f"Reference CLIP, from scratch, on {scenes.train_scenes} pairs, {noise}")
    run(_reference_arguments(arguments, scenes, folder / "reference"), attributes)
    print_once(arguments, f"\nFine-tuning of the reference: --method {arguments.method.method}")
    arguments.training.output_dir = str(folder / "result")
    arguments.model.model = str(folder / "reference")
    results = run(arguments, attributes)
    print_once(arguments, f"Took {time.perf_counter() - started:.0f} s.")
    return results


def _refuse_own_inputs(arguments: Arguments) -> None:
    model, data = arguments.model, arguments.data
    given = {"model": model.model, "model_config": model.model_config, "tokenizer": model.tokenizer}
    given |= {"train_data": data.train_data, "eval_data": data.eval_data}
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"--{name} {value}: the demonstration draws its data and trains its own model; use recipes/ncu.py."
            )


def _plan(arguments: Arguments, scenes: SceneArguments) -> dict[str, Any]:
    """Plans of both trainings, on scenes drawn aside; an untrained reference stands for the trained one."""
    folder = _output_folder(arguments)
    with tempfile.TemporaryDirectory() as own:
        place = Path(gather_json(own, arguments.training.device)[0])  # that of the first process
        train, evaluation = _draw(arguments, scenes, place)
        arguments.data.train_data, arguments.data.eval_data = str(train), str(evaluation)
        reference = _reference_arguments(arguments, scenes, folder / "reference")
        run(reference)
        arguments.training.output_dir = str(folder / "result")
        run(arguments._replace(model=reference.model))
        barrier()
    return {}


def attribute_sets(path: Path, pairs: CaptionedSet) -> list[LabelledSet]:
    """Zero-shot classifications of the scenes in the file `path`: one for each attribute."""
    columns = pq.read_table(path, columns=["key", *ATTRIBUTES]).to_pydict()
    row = {key: index for index, key in enumerate(columns["key"])}
    return [
        LabelledSet(
            origin=dataclasses.replace(pairs.origin, name=name),
            images=pairs.images,
            labels=torch.tensor([classes.index(columns[name][row[key]]) for key in pairs.keys]),
            classes=classes,
            templates=templates,
        )
        for name, (classes, templates) in ATTRIBUTES.items()
    ]


def print_once(arguments: Arguments, line: str) -> None:
    if arguments.training.should_log:
        print(line, flush=True)


def _draw(arguments: Arguments, scenes: SceneArguments, folder: Path) -> tuple[Path, Path]:
    """Training and evaluation scenes, drawn once; different seeds, so that no scene is in both."""
    files = []
    for name, count, seed in (
        ("train", scenes.train_scenes, scenes.scene_seed),
        ("eval", scenes.eval_scenes, scenes.scene_seed + 1_000_003),
    ):
        target = folder / name
        if arguments.training.should_save and not target.is_dir():
            write_atomically(target, partial(write_scenes, count=count, seed=seed))
        files.append(target / "scenes.parquet")
    barrier()
    return files[0], files[1]


def _reference_arguments(arguments: Arguments, scenes: SceneArguments, folder: Path) -> Arguments:
    """Plain training of a small CLIP from scratch, on the same noisy pairs."""
    training = copy.copy(arguments.training)
    training.output_dir = str(folder)
    training.num_train_epochs, training.learning_rate = scenes.reference_epochs, scenes.reference_learning_rate
    training.max_steps, training.push_to_hub, training.chunk_size = -1, False, None
    return Arguments(
        ModelArguments(model_config="demo", vocab_size=2048), arguments.data, MethodArguments(method="clip"), training
    )


def _output_folder(arguments: Arguments) -> Path:
    """The folder that was asked for; by default the next free one, or the newest where a run is to go on."""
    folder = Path(arguments.training.output_dir)
    if arguments.training.output_dir != DEFAULTS["output_dir"]:
        return folder
    taken = [folder] if folder.is_dir() else []
    while taken and (following := folder.with_name(f"{folder.name}-{len(taken) + 1}")).is_dir():
        taken.append(following)
    if taken and resuming(arguments.training):
        folder = taken[-1]
    elif taken:
        folder = folder.with_name(f"{folder.name}-{len(taken) + 1}")
    # The first process decides: another one might look after it has made the folder.
    return Path(gather_json(str(folder), arguments.training.device)[0])

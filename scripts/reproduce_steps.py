"""The steps of a table or figure: reference, fine-tuning, evaluation, curves. Each is one command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reproduce_settings import Setting, Words, flags, program
from reproduce_tables import (
    ACCURACY_SET,
    EPOCHS,
    EXPERIMENTS,
    NCU,
    RECALL_SET,
    REFERENCE,
    Experiment,
    Row,
    label,
)

from ncu_hf.data.sources.registry import KNOWN_SETS

RECIPES = {"cc3m": "recipes/ncu_cc3m.py", "cc12m": "recipes/ncu_cc12m.py", "yfcc15m-r": "recipes/ncu_yfcc15m.py"}


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name (`str`): Tells it from all other steps of all tables.
        does (`str`): In words.
        launcher (`Words`): What starts the program.
        arguments (`Words`): The program and what determines its result.
        result (`Path`): There when the step is complete.
        memory (`Words`): Further flags, which only change how it runs.
        run_folder (`Path`, *optional*): Output folder of a training; made by it.
        folder (`Path`, *optional*): Of the files that another step writes; must be there before.
    """

    name: str
    does: str
    launcher: Words
    arguments: Words
    result: Path
    memory: Words = ()
    run_folder: Path | None = None
    folder: Path | None = None

    @property
    def started(self) -> bool:
        """Whether there is a training to go on with."""
        return self.run_folder is not None and (self.run_folder / "run.json").is_file()

    def command(self) -> list[str]:
        resume = flags(resume_from_checkpoint="true") if self.started else ()
        return [*self.launcher, *self.arguments, *self.memory, *resume]

    def shell(self) -> list[str]:
        """The same as lines of a shell script."""
        made = [] if self.folder is None else [shlex.join(["mkdir", "-p", str(self.folder)])]
        return [*made, str(self)]

    def __str__(self) -> str:
        return shlex.join(self.command())


def plan(name: str, rows: list[Row], setting: Setting, reference: str | None) -> list[Step]:
    """All steps of a table or figure, in order.

    Args:
        name (`str`): Key of `EXPERIMENTS`.
        rows (`list[Row]`): Of it.
        setting (`Setting`): How they run.
        reference (`str`, *optional*): Folder or Hub id of a CLIP to take instead of training one.
    """
    experiment = EXPERIMENTS[name]
    steps: list[Step] = []
    if experiment.similarities and (download := setting.download()):
        steps.append(Step("download", "Download the validation tars of CC3M", (), download, setting.validation()))
    for row in rows:
        steps += _row_steps(name, experiment, row, setting, reference)
    return steps


def _row_steps(name: str, experiment: Experiment, row: Row, setting: Setting, reference: str | None) -> Iterator[Step]:
    start = reference or str(_folder(setting, row, REFERENCE))
    if reference is None:
        yield _train_reference(row, setting)
    sizes = {}
    for pairs in experiment.subsets:
        step = _fine_tune(row, setting, start, NCU, setting.subset(pairs))
        sizes[str(step.run_folder)] = setting.subset(pairs)
        yield step
    for method in experiment.methods:
        step = _fine_tune(row, setting, start, method)
        sizes[str(step.run_folder)] = setting.subset(KNOWN_SETS[row[0]].train_pairs)
        yield step
    evaluation = _evaluate(name, experiment, row, setting, [start, *sizes])
    yield evaluation
    if experiment.subsets:
        yield _draw_curves(name, row, setting, start, sizes, evaluation.result)


def _folder(setting: Setting, row: Row, model: str) -> Path:
    return setting.output / "models" / row[0] / row[1] / f"{model}{setting.suffix}"


def _train_reference(row: Row, setting: Setting) -> Step:
    folder = _folder(setting, row, REFERENCE)
    arguments = (program("recipes/clip.py"), *setting.reference(row), *flags(output_dir=folder))
    return _training(f"Train the reference CLIP from scratch ({label(row)})", row, setting, folder, arguments)


def _fine_tune(row: Row, setting: Setting, start: str, method: str, pairs: int | None = None) -> Step:
    folder = _folder(setting, row, method if pairs is None else f"{method}-{pairs}")
    how = flags(method=None if method == NCU else method, num_train_epochs=EPOCHS.get(method), train_subset=pairs)
    arguments = (
        program(RECIPES[row[0]]),
        *flags(model=start),
        *how,
        *setting.fine_tuning(row),
        *flags(output_dir=folder),
    )
    part = "" if pairs is None else f", {pairs:,} pairs"
    return _training(f"Fine-tune it by {method} ({label(row)}{part})", row, setting, folder, arguments)


def _training(does: str, row: Row, setting: Setting, folder: Path, arguments: Words) -> Step:
    name = f"train-{row[0]}-{row[1]}-{folder.name}"
    return Step(name, does, setting.launcher(), arguments, folder / "results.json", setting.memory(), folder)


def _evaluate(name: str, experiment: Experiment, row: Row, setting: Setting, models: list[str]) -> Step:
    folder = _table(name, row, setting)
    result = folder / "comparison.json"
    similarities = folder / f"{name}.png" if experiment.similarities else None
    arguments = (
        *(program("scripts/evaluate.py"), "--models", *models),
        *setting.evaluation(experiment.suite, row),
        "--paper_metrics",
        *flags(json=result, csv=folder / "comparison.csv", markdown=folder / "comparison.md"),
        *flags(plot=folder / "differences.png", similarity_plot=similarities),
        "--overwrite",
    )
    does = f"Measure {len(models)} models: {experiment.shows} ({label(row)})"
    return Step(f"{name}-{row[0]}-{row[1]}", does, setting.launcher(), arguments, result, folder=folder)


def _draw_curves(name: str, row: Row, setting: Setting, start: str, sizes: dict[str, int], comparison: Path) -> Step:
    image = comparison.with_name(f"{name}.png")
    arguments = (
        *(program("scripts/reproduce_curves.py"), str(comparison)),
        *flags(reference=start),
        *("--points", *(f"{model}={pairs}" for model, pairs in sizes.items())),
        *flags(accuracy_set=f"{ACCURACY_SET}{setting.suffix}", recall_set=f"{RECALL_SET}{setting.suffix}"),
        *flags(title=setting.title(f"NCU on a part of the data ({label(row)})"), output=image),
    )
    return Step(f"{name}-{row[0]}-{row[1]}-curves", f"Draw the curves ({label(row)})", ("python",), arguments, image)


def _table(name: str, row: Row, setting: Setting) -> Path:
    return setting.output / name / row[0] / row[1]

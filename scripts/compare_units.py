"""The runs that a comparison is made of: their flags, their folders, and which of them are complete."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare_config import NOISE, REFERENCE, Comparison, Entry, Flags
from study_writer import StudyFiles

from ncu_hf.checkpoint import read_json
from ncu_hf.cli import Arguments, parse_arguments
from ncu_hf.config import MethodArguments
from ncu_hf.errors import InputError, one_of
from ncu_hf.interpolation import MIXTURES_FILE, weight_key
from ncu_hf.objectives import METHODS
from ncu_hf.workspace import run_settings

RUN_FILE, RESULTS_FILE = "run.json", "results.json"
# Settings that name files of this machine; that the content is the same is told by the fingerprint in run.json.
_PATHS = ("model", "model_config", "tokenizer", "negative_prompt", "train_data", "eval_data", "eval_sets", "image_root")
# What every run is told unless the comparison says otherwise. A run is short: a killed one repeats its phase.
_DEFAULTS: Flags = {"save_strategy": "no", "save_total_limit": 1, "dataloader_num_workers": 0}
_REFERENCE_DEFAULTS: Flags = {"method": "clip"}
# What a run costs beside its steps, measured in steps: it is measured, and written.
_OVERHEAD = 20.0
# Cost of a step against one of plain training: a further pass of the text tower, of a frozen model.
_NEGATIVE_COST, _REFERENCE_COST = 0.5, 0.7


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        noise_share (`float`), seed (`int`), entry (`str`): Its place in the comparison.
        folder (`Path`): Its output.
        flags (`dict`): Of the run.
        needs (`tuple[Path, ...]`): Folders of the runs that must be complete before.
        cost (`float`): Expected length, in steps of plain training.
        weights (`tuple[float, ...]`): If given, no training: mixtures of the two models of `needs` are measured.
    """

    noise_share: float
    seed: int
    entry: str
    folder: Path
    flags: Flags = field(hash=False)
    needs: tuple[Path, ...] = ()
    cost: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """E.g. `"noise 0.4, seed 1, ncu"`."""
        mixed = ", between reference and result" if self.weights else ""
        return f"noise {self.noise_share:g}, seed {self.seed}, {self.entry}{mixed}"

    @property
    def result(self) -> Path:
        """File that is there when the run is complete."""
        return self.folder / (MIXTURES_FILE if self.weights else RESULTS_FILE)

    @property
    def complete(self) -> bool:
        if not self.result.is_file():
            return False
        measured = read_json(self.result)["weights"] if self.weights else ()
        return all(weight_key(weight) in measured for weight in self.weights)

    @property
    def log(self) -> Path:
        """Beside the folder, since a run wants an empty one."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def argv(self) -> list[str]:
        """Flags of the run as words; one that was killed goes on."""
        started = {"resume_from_checkpoint": True} if (self.folder / RUN_FILE).is_file() else {}
        return words(self.flags | started)

    def arguments(self) -> Arguments:
        """The same, parsed.

        Raises:
            InputError: an unknown flag, a value that makes no sense.
        """
        return parse_arguments(words(self.flags))[0]


def words(flags: Flags) -> list[str]:
    """`{"bf16": True}` -> `["--bf16", "true"]`; what is `None` is left out."""
    return [
        word
        for name, value in flags.items()
        if value is not None
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def plan(comparison: Comparison, study: StudyFiles, output: Path) -> list[Unit]:
    """All runs, cell by cell, each after those that it needs."""
    units = []
    for noise_share in comparison.noise_shares:
        for seed in comparison.seeds:
            units += _Cell(comparison, study, output, noise_share, seed).units()
    return units


@dataclass(frozen=True)
class _Cell:
    """A noise share with a seed: one reference, and everything that starts from it."""

    comparison: Comparison
    study: StudyFiles
    output: Path
    noise_share: float
    seed: int

    def units(self) -> list[Unit]:
        entries = [
            entry
            for entry in self.comparison.entries.values()
            if self.noise_share in entry.noise_shares and self.seed in entry.seeds
        ]
        units = [self._method(entry) for entry in entries]
        if self.comparison.reference.get("model") is None and entries:
            units.insert(0, self._reference())
        mixed = [entry for entry in entries if entry.name in self.comparison.interpolate]
        return units + [self._mixture(entry) for entry in mixed]

    def _folder(self, name: str) -> Path:
        return self.output / "runs" / f"{self.noise_share:g}" / str(self.seed) / name

    def _flags(self, folder: Path, *parts: Flags) -> Flags:
        flags = _DEFAULTS | self.study.flags()
        for part in (self.comparison.common, *parts):
            flags = flags | part
        cell = {"noise_share": self.noise_share, "noise_seed": self.seed, "seed": self.seed}
        if flags.get("train_subset") is not None:
            cell["subset_seed"] = self.seed
        return flags | cell | {"output_dir": str(folder)}

    def _reference(self) -> Unit:
        folder = self._folder(REFERENCE)
        flags = self._flags(folder, _REFERENCE_DEFAULTS, self.comparison.reference)
        batch = int(flags.get("global_batch_size", 2048))
        steps = float(flags.get("max_steps") or 0) or float(flags.get("num_train_epochs", 8)) * self.study.pairs / batch
        return Unit(self.noise_share, self.seed, REFERENCE, folder, flags, cost=steps + _OVERHEAD)

    def _method(self, entry: Entry) -> Unit:
        folder, start = self._folder(entry.name), self.comparison.reference.get("model")
        flags = self._flags(
            folder,
            self.comparison.fine_tuning,
            entry.flags,
            {"model": str(start or self._folder(REFERENCE))},
            lengths(entry, self.comparison),
        )
        if flags.get("forget_ratio") == NOISE:
            flags["forget_ratio"] = self.noise_share or self.comparison.forget_ratio_without_noise
        needs = () if start else (self._folder(REFERENCE),)
        return Unit(self.noise_share, self.seed, entry.name, folder, flags, needs, _cost(flags) + _OVERHEAD)

    def _mixture(self, entry: Entry) -> Unit:
        result = self._method(entry)
        folder = self._folder(f"{entry.name}.interpolation")
        needs = (Path(result.flags["model"]), result.folder)
        return Unit(
            self.noise_share, self.seed, entry.name, folder, result.flags, needs, _OVERHEAD, self.comparison.weights
        )


def lengths(entry: Entry, comparison: Comparison) -> Flags:
    """Steps of each phase; of an entry on a part of the data as many as make the same epochs.

    Raises:
        InputError: a phase would have none, or the method is not known.
    """
    flags = comparison.common | comparison.fine_tuning | entry.flags
    name = str(flags.get("method", MethodArguments().method))
    phases = len(METHODS[one_of(f"methods: {entry.name}: method", name, METHODS)])
    steps = max(round(entry.part * comparison.steps), 1)
    first = round(entry.phase1_share * steps) if phases > 1 else 0
    if phases > 1 and not 0 < first < steps:
        raise InputError(
            f"methods: {entry.name}: phase1_share {entry.phase1_share:g} of {steps} steps leaves a phase without steps."
        )
    return {"max_steps": steps - first, "negative_prompt_max_steps": first or None}


def _cost(flags: Flags) -> float:
    """Expected length of the training, in steps of plain training."""
    steps = (flags["negative_prompt_max_steps"] or 0, flags["max_steps"])
    objectives = METHODS[flags.get("method", MethodArguments().method)]
    return sum(
        count * (1 + _NEGATIVE_COST * one.needs_negative_text + _REFERENCE_COST * one.needs_reference)
        for count, one in zip(steps[-len(objectives) :], objectives, strict=True)
    )


def check_units(units: list[Unit]) -> None:
    """That all flags make sense, and that what is complete was run with them.

    Raises:
        InputError: names the entry.
    """
    for unit in units:
        try:
            settings = run_settings(unit.arguments())
        except InputError as error:
            where = REFERENCE if unit.entry == REFERENCE else f"methods: {unit.entry}"
            raise InputError(f"{where}: {error}") from error
        if unit.complete and not unit.weights:
            _check_settings(unit, settings)


def _check_settings(unit: Unit, settings: dict[str, Any]) -> None:
    earlier = read_json(unit.folder / RUN_FILE)
    # What an earlier release did not know, it did as the default says.
    changed = [name for name in settings if name in earlier and name not in _PATHS and earlier[name] != settings[name]]
    if changed:
        listed = ", ".join(f"{name} was {earlier[name]!r}, is {settings[name]!r}" for name in changed[:5])
        raise InputError(
            f"{unit.name} is complete, with other settings: {listed}. Give another --output_dir, or delete "
            f"{unit.folder}."
        )

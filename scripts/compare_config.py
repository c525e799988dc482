"""What a comparison of methods is: a YAML file, checked before anything runs.

```yaml
study: studies/scenes                 # written by study_data.py; --study overrides it
noise_shares: [0.0, 0.4]              # share of the training pairs whose captions get the noise: shuffled, or
                                      # as `common: {noise_kind: hard}` says
seeds: [0, 1, 2]                      # of weights, order, noise and parts of the data; the pairs stay the same
steps: 200                            # optimizer steps that every method gets
phase1_share: 0.25                    # of them, for the first phase of methods that have two
forget_ratio_without_noise: 0.1       # what `noise` means where there is none
common: {global_batch_size: 128}      # flags of all runs
reference: {model_config: demo, num_train_epochs: 16}     # flags of the reference, from scratch; or {model: FOLDER}
fine_tuning: {learning_rate: 1.0e-3}  # flags of all methods
methods:                              # entries: any flags, and noise_shares, seeds, phase1_share
  clip: {method: clip}
  ncu: {method: ncu, forget_ratio: noise}
baseline: clip                        # differences are taken to it
recommended: ncu                      # optional: and from each other entry to this one
shown_noise_share: 0.4                # optional: of the plot of differences; by default the largest
figure4: {entry: ncu, shares: [0.2, 0.4, 0.6, 0.8]}       # optional: the entry on parts of the data, at equal epochs
interpolate: [clip, ncu]              # optional: entries to measure between reference and result,
weights: [0.25, 0.5, 0.75]            #   at these weights of the result
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ncu_hf.errors import InputError, nearest, one_line, one_of

NOISE = "noise"  # as forget_ratio: the share that is in the data
REFERENCE = "reference"
PHASE1_SHARE = 0.25
WEIGHTS = (0.25, 0.5, 0.75)  # of the result, where reference and result are mixed; 0 and 1 are known
_OF_ENTRY = ("noise_shares", "seeds", "phase1_share")
# Decided by the comparison; a flag of its own would make entries incomparable.
_DECIDED = (
    *("output_dir", "train_data", "eval_data", "eval_sets", "image_column", "caption_column"),
    *("eval_image_column", "eval_caption_column"),
    *(
        "noise_share",
        "noise_seed",
        "subset_seed",
        "seed",
        "resume_from_checkpoint",
        "overwrite_output_dir",
        "plan",
        "push_to_hub",
    ),
)
_DECIDED_OF_METHODS = (*_DECIDED, "model", "model_config", "max_steps", "negative_prompt_max_steps")
_EPOCHS = ("num_train_epochs", "negative_prompt_epochs")
Flags = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of the comparison.

    Attributes:
        name (`str`): In tables and folders.
        flags (`dict`): Of its runs.
        noise_shares, seeds (`tuple`): Cells that it runs in.
        phase1_share (`float`): Share of the steps that a first phase gets.
    """

    name: str
    flags: Flags
    noise_shares: tuple[float, ...]
    seeds: tuple[int, ...]
    phase1_share: float
    part: float = 1.0


@dataclass(frozen=True)
class Figure4:
    """An entry on parts of the data, at equal epochs."""

    entry: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """A comparison as it is described; see the docstring of this file."""

    noise_shares: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    methods: dict[str, Entry]
    study: Path | None = None
    common: Flags = field(default_factory=dict)
    reference: Flags = field(default_factory=dict)
    fine_tuning: Flags = field(default_factory=dict)
    phase1_share: float = PHASE1_SHARE
    forget_ratio_without_noise: float | None = None
    baseline: str | None = None
    recommended: str | None = None
    shown_noise_share: float | None = None
    figure4: Figure4 | None = None
    interpolate: tuple[str, ...] = ()
    weights: tuple[float, ...] = WEIGHTS

    @property
    def entries(self) -> dict[str, Entry]:
        """All entries by name: the methods, and those of Figure 4."""
        return self.methods | {entry.name: entry for entry in self.parts().values()}

    def parts(self) -> dict[float, Entry]:
        """Entries of Figure 4 by share of the data, without the whole, at the noise share that is shown."""
        if self.figure4 is None:
            return {}
        whole = self.methods[self.figure4.entry]
        shown = max(self.noise_shares) if self.shown_noise_share is None else self.shown_noise_share
        return {
            share: Entry(
                f"{whole.name}@{100 * share:g}%",
                whole.flags | {"train_subset": f"{100 * share:g}%"},
                tuple(noise for noise in whole.noise_shares if noise == shown),
                whole.seeds,
                whole.phase1_share,
                share,
            )
            for share in self.figure4.shares
            if share < 1
        }


def read_comparison(path: Path) -> Comparison:
    """Read and check a file.

    Raises:
        InputError: names the file, the key and what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}).") from error
    try:
        return parse_comparison(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_comparison(content: Any) -> Comparison:
    """Check the content of a file.

    Raises:
        InputError: an unknown or a missing key, a value that makes no sense.
    """
    content = _mapping("the file", content)
    _known("", content, [one.name for one in fields(Comparison)])
    for name in ("noise_shares", "seeds", "steps", "reference", "methods"):
        if name not in content:
            raise InputError(f"{name} is missing.")
    values: dict[str, Any] = {
        "noise_shares": _shares("noise_shares", content["noise_shares"]),
        "seeds": _seeds("seeds", content["seeds"]),
        "steps": _steps(content["steps"]),
        "phase1_share": _share("phase1_share", content.get("phase1_share", PHASE1_SHARE)),
        "study": Path(str(content["study"])) if content.get("study") else None,
    }
    for name, decided in (("common", _DECIDED_OF_METHODS), ("fine_tuning", _DECIDED_OF_METHODS), (REFERENCE, _DECIDED)):
        values[name] = _flags(name, content.get(name) or {}, decided, epochs=name == REFERENCE)
    values["methods"] = {
        str(name): _entry(str(name), entry, values) for name, entry in _mapping("methods", content["methods"]).items()
    }
    values |= _optional(content, values)
    comparison = Comparison(**values)
    _check_forget_ratios(comparison)
    return comparison


def _optional(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that may be left out."""
    methods, found = values["methods"], {}
    if "forget_ratio_without_noise" in content:
        name = "forget_ratio_without_noise"
        found[name] = _share(name, content[name])
    for name in ("baseline", "recommended"):
        if content.get(name) is not None:
            found[name] = one_of(name, str(content[name]), methods)
    if content.get("shown_noise_share") is not None:
        found["shown_noise_share"] = _share("shown_noise_share", content["shown_noise_share"])
        if found["shown_noise_share"] not in values["noise_shares"]:
            raise InputError(f"shown_noise_share: {found['shown_noise_share']:g} is none of noise_shares.")
    if content.get("figure4") is not None:
        part = _mapping("figure4", content["figure4"])
        _known("figure4: ", part, ["entry", "shares"])
        entry = one_of("figure4: entry", str(part.get("entry")), methods)
        found["figure4"] = Figure4(entry, _shares("figure4: shares", part.get("shares")))
    if content.get("interpolate") is not None:
        found["interpolate"] = tuple(
            one_of("interpolate", str(name), methods) for name in _list("interpolate", content["interpolate"])
        )
    if "weights" in content:
        found["weights"] = _shares("weights", content["weights"])
    return found


def _entry(name: str, content: Any, values: Mapping[str, Any]) -> Entry:
    where, content = f"methods: {name}: ", _mapping(f"methods: {name}", content)
    if name == REFERENCE or not name or any(sign in name for sign in "/\\@") or name.startswith("."):
        raise InputError(f"methods: {name!r} cannot be the name of an entry; it is one of a folder, without @.")
    flags = {key: value for key, value in content.items() if key not in _OF_ENTRY}
    noise_shares, seeds = values["noise_shares"], values["seeds"]
    if "noise_shares" in content:
        place = f"{where}noise_shares"
        noise_shares = _part(place, _shares(place, content["noise_shares"]), noise_shares)
    if "seeds" in content:
        place = f"{where}seeds"
        seeds = _part(place, _seeds(place, content["seeds"]), seeds)
    share = _share(f"{where}phase1_share", content.get("phase1_share", values["phase1_share"]))
    return Entry(name, _flags(where.rstrip(": "), flags, _DECIDED_OF_METHODS), noise_shares, seeds, share)


def _part(where: str, chosen: tuple, known: tuple) -> tuple:
    for value in chosen:
        if value not in known:
            raise InputError(f"{where}: {value:g} is none of those of the comparison ({', '.join(map(str, known))}).")
    return chosen


def _flags(where: str, content: Any, decided: Iterable[str], epochs: bool = False) -> Flags:
    content = _mapping(where, content)
    for name in content:
        if name in decided:
            raise InputError(f"{where}: {name} is decided by the comparison; leave it out.")
        if name in _EPOCHS and not epochs:
            raise InputError(f"{where}: {name} has no effect, every method gets `steps` steps; leave it out.")
    return dict(content)


def _check_forget_ratios(comparison: Comparison) -> None:
    for entry in comparison.methods.values():
        ratio = entry.flags.get("forget_ratio", comparison.fine_tuning.get("forget_ratio"))
        if ratio == NOISE and 0 in entry.noise_shares and comparison.forget_ratio_without_noise is None:
            raise InputError(
                f"methods: {entry.name}: forget_ratio is {NOISE}, and a noise share is 0; say what to forget there: "
                "forget_ratio_without_noise: 0.1"
            )


def _known(where: str, content: Mapping[str, Any], known: list[str]) -> None:
    for name in content:
        if name not in known:
            raise InputError(f"{where}unknown key {name!r}.{nearest(str(name), known)} Known: {', '.join(known)}.")


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected lines of 'key: value', got {value!r:.60}.")
    return value


def _list(where: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or None in values or len(set(map(str, values))) < len(values):
        raise InputError(f"{where}: expected a list of different values, got {value!r:.60}.")
    return values


def _shares(where: str, value: Any) -> tuple[float, ...]:
    return tuple(_share(where, one) for one in _list(where, value))


def _share(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where}: a share between 0 and 1, got {value!r:.60}.")
    return float(value)


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    values = _list(where, value)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise InputError(f"{where}: whole numbers from 0, got {one!r:.60}.")
    return tuple(values)


def _steps(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise InputError(f"steps: a number of optimizer steps, at least 2, got {value!r:.60}.")
    return value

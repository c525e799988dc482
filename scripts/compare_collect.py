"""What is complete of a comparison -> numbers: of each run, over seeds, and differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from compare_config import REFERENCE, Comparison
from compare_statistics import Resampler, items_interval, seeds_interval, spread
from compare_units import RESULTS_FILE, Unit

from ncu_hf.checkpoint import read_json
from ncu_hf.evaluation.outcomes import OUTCOMES_FILE, load_outcomes
from ncu_hf.interpolation import MIXTURES_FILE
from ncu_hf.reporting.results import HELD_OUT

MEAN_RECALL, ZERO_SHOT = "mean_recall", "zero_shot"
ONE_SET = "zero_shot "  # and the name of a set


@dataclass(frozen=True)
class Record:
    """A model that was measured.

    Attributes:
        noise_share (`float`), seed (`int`), entry (`str`): Its place; the entry of the reference is `"reference"`.
        folder (`Path`), side (`str`): Where its numbers are: run, `before` or `after`.
        results (`dict`): `results.json` of the run.
    """

    noise_share: float
    seed: int
    entry: str
    folder: Path
    side: str
    results: dict[str, Any] = field(hash=False)

    @cached_property
    def values(self) -> dict[str, float]:
        """By metric: `mean_recall`, `zero_shot` (mean over sets), `zero_shot <set>`."""
        numbers = {
            group: {name: sides[self.side] for name, sides in self.results.get(group, {}).items() if self.side in sides}
            for group in ("retrieval", "zero_shot")
        }
        return metrics(numbers)

    def resampled(self, resampler: Resampler) -> dict[str, numpy.ndarray]:
        """The same metrics in each resample of the items; those that are not known by item are missing."""
        outcomes = load_outcomes(self.folder / OUTCOMES_FILE)[self.side]
        sets = self.results.get("zero_shot", {})
        found = {
            f"{ONE_SET}{name}": resampler.metric(outcomes["zero_shot", name])
            for name, sides in sets.items()
            if sides[self.side]["primary"] == "accuracy"
        }
        if sets and len(found) == len(sets):
            found[ZERO_SHOT] = numpy.mean(list(found.values()), axis=0)
        if ("retrieval", HELD_OUT) in outcomes:
            found[MEAN_RECALL] = resampler.metric(outcomes["retrieval", HELD_OUT])
        return found

    def to_json(self) -> dict[str, Any]:
        own = self.side == "after"
        phases = self.results.get("phases", []) if own else []
        return {
            "noise_share": self.noise_share,
            "seed": self.seed,
            "entry": self.entry,
            "steps": {phase["name"]: phase["steps"] for phase in phases},
            "training_seconds": sum(phase.get("seconds", 0.0) for phase in phases),
            "values": self.values,
            "forget_set": self.results.get("forget_set", {}) if own else {},
        }


def metrics(numbers: dict[str, Any]) -> dict[str, float]:
    """Metrics of one model from `{"retrieval": {set: R}, "zero_shot": {set: Z}}`."""
    values = {}
    if HELD_OUT in numbers.get("retrieval", {}):
        values[MEAN_RECALL] = numbers["retrieval"][HELD_OUT]["mean_recall"]
    sets = {name: found[found["primary"]] for name, found in numbers.get("zero_shot", {}).items()}
    if sets:
        values[ZERO_SHOT] = fmean(sets.values())
    return values | {f"{ONE_SET}{name}": value for name, value in sets.items()}


def collect(units: Iterable[Unit]) -> list[Record]:
    """A record of each complete run, and of the reference of each cell: its own run, or what a method says of it."""
    records: dict[tuple[float, int, str], Record] = {}
    for unit in units:
        if unit.weights or not unit.complete:
            continue
        results = read_json(unit.folder / RESULTS_FILE)
        place = (unit.noise_share, unit.seed)
        records[*place, unit.entry] = Record(*place, unit.entry, unit.folder, "after", results)
        if (*place, REFERENCE) not in records and any("before" in sides for sides in _sides(results)):
            records[*place, REFERENCE] = Record(*place, REFERENCE, unit.folder, "before", results)
    return list(records.values())


def _sides(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in ("retrieval", "zero_shot"):
        yield from results.get(group, {}).values()


def summarise(comparison: Comparison, records: list[Record]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds, of each metric of each entry at each noise share."""
    rows = []
    for noise_share in comparison.noise_shares:
        for entry in (REFERENCE, *comparison.entries):
            chosen = _chosen(records, noise_share, entry)
            for metric in dict.fromkeys(metric for record in chosen.values() for metric in record.values):
                by_seed = {seed: record.values[metric] for seed, record in chosen.items()}
                rows.append(
                    {
                        "noise_share": noise_share,
                        "entry": entry,
                        "metric": metric,
                        **spread(list(by_seed.values()))._asdict(),
                        "by_seed": {str(seed): value for seed, value in by_seed.items()},
                    }
                )
    return rows


def differences(comparison: Comparison, records: list[Record]) -> list[dict[str, Any]]:
    """Paired differences, entry minus what it is compared against, with both intervals."""
    resampler = Resampler()
    rows = []
    for noise_share in comparison.noise_shares:
        by_entry = {name: _chosen(records, noise_share, name) for name in (REFERENCE, *comparison.entries)}
        resampled = {
            (name, seed): record.resampled(resampler)
            for name, chosen in by_entry.items()
            for seed, record in chosen.items()
        }
        for entry, against in _pairs(comparison):
            seeds = [seed for seed in by_entry[entry] if seed in by_entry[against]]
            if not seeds:
                continue
            for metric in by_entry[entry][seeds[0]].values:
                gains = {
                    str(seed): by_entry[entry][seed].values[metric] - by_entry[against][seed].values[metric]
                    for seed in seeds
                }
                pairs = [
                    (resampled[against, seed][metric], resampled[entry, seed][metric])
                    for seed in seeds
                    if metric in resampled[entry, seed]
                ]
                rows.append(
                    {
                        "noise_share": noise_share,
                        "entry": entry,
                        "against": against,
                        "metric": metric,
                        "difference": fmean(gains.values()),
                        "n": len(seeds),
                        "over_seeds": seeds_interval(list(gains.values())),
                        "over_items": items_interval(pairs) if pairs else None,
                        "by_seed": gains,
                    }
                )
    return rows


def _pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """(entry, what it is compared against), each once."""
    names, pairs = list(comparison.entries), []
    for against in filter(None, (comparison.baseline, REFERENCE)):
        pairs += [(name, against) for name in names if name != against]
    best = comparison.recommended
    if best is not None:
        pairs += [(best, name) for name in names if name != best]
    return list(dict.fromkeys(pairs))


def _chosen(records: list[Record], noise_share: float, entry: str) -> dict[int, Record]:
    """Records of an entry at a noise share, by seed."""
    found = (record for record in records if record.noise_share == noise_share and record.entry == entry)
    return {record.seed: record for record in sorted(found, key=lambda record: record.seed)}


def interpolations(units: Iterable[Unit]) -> list[dict[str, Any]]:
    """What was measured between reference and result: a row for each cell, entry and weight."""
    return [
        {
            "noise_share": unit.noise_share,
            "seed": unit.seed,
            "entry": unit.entry,
            "weight": float(weight),
            "values": metrics(numbers),
        }
        for unit in units
        if unit.weights and unit.complete
        for weight, numbers in read_json(unit.folder / MIXTURES_FILE)["weights"].items()
    ]

"""Counts of records that were left out, by reason, with a ceiling."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ncu_hf.data.records import Skipped
from ncu_hf.errors import InputError

# Below this number of records one bad image would be a large share.
MIN_RECORDS = 100
MAX_EXAMPLES = 20


class TooManyBadRecords(InputError):
    """More records were unusable than `max_bad_fraction` allows."""


class DataHealth:
    """How many records were seen and skipped, and why.

    A record counts each time that it is met, so that a bad one counts once an epoch and the share stays comparable.

    Args:
        max_bad_fraction (`float`, *optional*, defaults to 0.05): Ceiling of skipped/seen, in [0, 1].
        problems (`Iterable[Skipped]`, *optional*): Faults of whole shards (`source.problems`). They are reported, but
            not part of the share: how many records a cut file has lost is not known.
    """

    def __init__(self, max_bad_fraction: float = 0.05, problems: Iterable[Skipped] = ()):
        if not 0 <= max_bad_fraction <= 1:
            raise InputError(f"max_bad_fraction: {max_bad_fraction} is outside [0, 1]. 0.05 allows 5 % bad records.")
        self.max_bad_fraction = max_bad_fraction
        self.seen = 0
        self.reasons: dict[str, int] = {}
        self.examples: dict[str, list[Skipped]] = {}
        self.problems: list[Skipped] = list(problems)

    @property
    def skipped(self) -> int:
        """`int`: number of skipped records."""
        return sum(self.reasons.values())

    @property
    def bad_fraction(self) -> float:
        """`float`: skipped/seen, 0 before the first record."""
        return self.skipped / self.seen if self.seen else 0.0

    def update(self, batch: Mapping[str, Any]) -> None:
        """Count one batch of `PairLoader`: its `keys` and `skipped`, and the `problems` of shards of a stream."""
        self.seen += len(batch["keys"]) + len(batch["skipped"])
        for skipped in batch["skipped"]:
            self._count(skipped.reason, 1, [skipped])
        self.add_problems(batch.get("problems", ()))

    def add_problems(self, problems: Iterable[Skipped]) -> None:
        """Note faults of whole shards, each once."""
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]

    def _count(self, reason: str, count: int, examples: Iterable[Skipped]) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        for example in examples:
            if len(kept) < MAX_EXAMPLES and example not in kept:
                kept.append(example)

    def check(self, final: bool = False) -> None:
        """Stop if too many records were bad.

        Args:
            final (`bool`, *optional*, defaults to `False`): End of the run: check however few records were seen.
                Otherwise the check starts after `MIN_RECORDS` records.

        Raises:
            TooManyBadRecords: skipped/seen is above `max_bad_fraction`.
        """
        if (final or self.seen >= MIN_RECORDS) and self.bad_fraction > self.max_bad_fraction:
            worst = max(self.reasons, key=lambda reason: self.reasons[reason])
            first = self.examples[worst][0]
            raise TooManyBadRecords(
                f"{self.skipped} of {self.seen} records are unusable ({self.bad_fraction:.1%}), most of them "
                f"{worst!r}, e.g. {first.key!r} in {first.shard!r}; max_bad_fraction allows "
                f"{self.max_bad_fraction:.1%}. Repair the data or raise --max_bad_fraction."
            )

    def state_dict(self) -> dict[str, Any]:
        """`dict`: everything, JSON-able, for checkpoints."""
        return {
            "max_bad_fraction": self.max_bad_fraction,
            "seen": self.seen,
            "reasons": dict(self.reasons),
            "examples": {reason: [list(example) for example in kept] for reason, kept in self.examples.items()},
            "problems": [list(problem) for problem in self.problems],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore counts and examples. The ceiling stays that of the current run."""
        self.seen, self.reasons, self.examples, self.problems = 0, {}, {}, []
        self.merge([state])

    def merge(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Add what other processes (or an earlier run) have counted."""
        for state in states:
            self.seen += state["seen"]
            for reason, count in state["reasons"].items():
                self._count(reason, count, [Skipped(*example) for example in state["examples"][reason]])
            self.add_problems(Skipped(*problem) for problem in state["problems"])

    def summary_table(self) -> str:
        """Short Markdown table: one line a reason, the most frequent first."""
        lines = ["| records | count | example |", "| --- | ---: | --- |", f"| seen | {self.seen} | |"]
        for reason, count in sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])):
            first = self.examples[reason][0]
            lines.append(f"| skipped: {reason} | {count} | {_cell(first.key)} ({_cell(first.shard)}) |")
        lines += [f"| shard: {problem.reason} | | {_cell(problem.shard)} |" for problem in self.problems]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the state and the totals as JSON (`data_health.json`)."""
        report = {"skipped": self.skipped, "bad_fraction": self.bad_fraction, **self.state_dict()}
        Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    """Text of the data set, made harmless in a Markdown table and printable (a file name need not be UTF-8)."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return " ".join(text.replace("|", "\\|").split())

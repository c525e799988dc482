"""What was measured, as rows of a table: before and after, with intervals, grouped by set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from ncu_hf.reporting.results import SIDES, finite

ZERO_SHOT, RETRIEVAL, PROBE = "Zero-shot classification", "Image-text retrieval", "Linear probe"
FORGET_SET = "Forget set"
GROUP_KEYS = {ZERO_SHOT: "zero_shot", RETRIEVAL: "retrieval", PROBE: "linear_probe"}
AVERAGE = "primary metric"  # name of the row of averages over sets
RECALLS = ("R@1", "R@5", "R@10")
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
METRICS = {"accuracy": "accuracy", "mean_per_class": "mean per class", "top5": "top 5"}
MOST_CLASSES_WITHOUT_TOP5 = 5  # with so many, the class is among five by definition


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        group (`str`): Heading of the table that it belongs to.
        set_name (`str`): What it was measured on; empty where a group has no sets.
        name (`str`): The metric.
        values (`dict[str, float]`): By side, `before` (may be missing) and `after`; all are finite.
        intervals (`dict[str, list[float]]`): 95 % intervals by side, where there are some.
        n (`int`, *optional*): Number of items that the value is a mean of.
        percent (`bool`): Whether values are shares, shown in percent.
        primary (`bool`): Whether this is the metric that counts for its set.
        metric (`str`): The metric as paired tests name it, e.g. `"image_to_text R@1"`.
        paired (`dict`, *optional*): Test of after against before on the same items, see `ncu_hf.evaluation.pairwise`.
    """

    group: str
    set_name: str
    name: str
    values: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    n: int | None = None
    percent: bool = True
    primary: bool = False
    metric: str = ""
    paired: dict | None = None

    def value(self, side: str) -> str:
        """Value with its interval, or a dash."""
        if side not in self.values:
            return "-"
        text = self._number(self.values[side])
        if side in self.intervals:
            low, high = map(self._number, self.intervals[side])
            text += f" [{low}, {high}]"
        return text

    def difference(self) -> str:
        """After minus before, in the unit of the values, with its paired interval where there is one; or a dash."""
        if not self.compares:
            return "-"
        text = self._signed(self.values["after"] - self.values["before"])
        if self.paired_interval:
            low, high = map(self._signed, self.paired_interval)
            text += f" [{low}, {high}]"
        return text

    @property
    def paired_interval(self) -> list[float]:
        """95 % interval of the difference on the same items; empty where it is not known."""
        bounds = [finite(bound) for bound in (self.paired or {}).get("interval", ())]
        return bounds if len(bounds) == 2 and None not in bounds else []

    def size(self) -> str:
        """n, or a dash."""
        return "-" if self.n is None else f"{self.n:,}"

    @property
    def compares(self) -> bool:
        """Whether both sides have a value."""
        return all(side in self.values for side in SIDES)

    def _signed(self, difference: float) -> str:
        text = f"{100 * difference:+.1f}" if self.percent else f"{difference:+.3g}"
        return "+0.0" if text == "-0.0" else text

    def _number(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"


def result_rows(results: dict) -> list[Row]:
    """All rows of a run (see `ncu_hf.reporting.results`), in the order of the tables.

    The primary metric of a set comes first. Groups that are missing are left out, and so is a row without any value.
    """
    tests = {(test["group"], test["set"], test["metric"]): test for test in results.get("paired", ())}
    rows = [
        *_classification(ZERO_SHOT, results.get("zero_shot", {})),
        *_retrieval(results.get("retrieval", {})),
        *_classification(PROBE, results.get("linear_probe", {})),
        *_forget_set(results.get("forget_set", {})),
    ]
    return [
        replace(row, paired=tests.get((GROUP_KEYS.get(row.group), row.set_name, row.metric)))
        for row in rows
        if row.values
    ]


def average_row(rows: list[Row], group: str) -> Row | None:
    """Unweighted mean of the primary metric over the sets of a group, without interval.

    Only sets that were measured on all sides that the group has enter, so that both means are of the same sets.

    Returns:
        `Row`: `None` with fewer than two sets.
    """
    rows = [row for row in rows if row.group == group and row.primary]
    sides = [side for side in SIDES if any(side in row.values for row in rows)]
    rows = [row for row in rows if all(side in row.values for side in sides)]
    if len(rows) < 2:
        return None
    means = {side: sum(row.values[side] for row in rows) / len(rows) for side in sides}
    return Row(group, f"average of {len(rows)} sets", AVERAGE, means, primary=True)


def _row(group: str, set_name: str, name: str, sides: dict, key: str, n: int | None, **options: bool | str) -> Row:
    """`key` is the value in the numbers of a side; paired tests call it the same unless `options` says otherwise."""
    values, intervals = {}, {}
    for side in SIDES:
        numbers = sides.get(side, {})
        value = finite(numbers.get(key))
        if value is not None:
            values[side] = value
            bounds = [finite(bound) for bound in numbers.get("interval", {}).get(key, ())]
            if len(bounds) == 2 and None not in bounds:
                intervals[side] = bounds
    return Row(group, set_name, name, values, intervals, n, **({"metric": key} | options))


def _classification(group: str, sets: dict) -> Iterator[Row]:
    """Zero-shot and linear probe: their numbers have the same keys; a probe has no top 5."""
    for name, sides in sets.items():
        after = sides.get("after", {})
        metrics = dict(METRICS)
        if after.get("n_classes", 0) <= MOST_CLASSES_WITHOUT_TOP5:
            del metrics["top5"]
        primary = after.get("primary", "accuracy")
        rows = [
            _row(group, name, words, sides, key, after.get("n"), primary=key == primary)
            for key, words in metrics.items()
        ]
        yield from sorted(rows, key=lambda row: not row.primary)


def _retrieval(sets: dict) -> Iterator[Row]:
    for name, sides in sets.items():
        after = sides.get("after", {})
        sizes = {"image_to_text": after.get("n_images"), "text_to_image": after.get("n_captions")}
        n = sum(size for size in sizes.values() if size is not None) or None
        row = partial(_row, RETRIEVAL, name)
        yield row("mean recall", sides, "mean_recall", n, primary=True)
        for direction, words in DIRECTIONS.items():
            part = {side: numbers.get(direction, {}) for side, numbers in sides.items()}
            for recall in RECALLS:
                yield row(f"{words} {recall}", part, recall, sizes[direction], metric=f"{direction} {recall}")
            yield row(f"{words} median rank", part, "median_rank", sizes[direction], percent=False)


def _forget_set(sides: dict) -> Iterator[Row]:
    n = sides.get("after", {}).get("n")
    for key, words in {"precision": "precision", "recall": "recall", "auroc": "AUROC"}.items():
        yield _row(FORGET_SET, "", words, sides, key, n)

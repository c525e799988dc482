"""Before/after tables: one list of rows, printed for the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ncu_hf.reporting.results import SIDES

RECALLS = ("R@1", "R@5", "R@10")
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        group (`str`): Heading of the table that it belongs to.
        name (`str`): What was measured.
        values (`dict[str, float]`): By side, `before` (may be missing) and `after`.
        intervals (`dict[str, list[float]]`): 95 % intervals by side, where there are some.
        n (`int`): Number of items that the value is a mean of.
        percent (`bool`): Whether values are shares, shown in percent.
    """

    group: str
    name: str
    values: dict[str, float]
    intervals: dict[str, list[float]]
    n: int
    percent: bool = True

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
        """After minus before, in the unit of the values, or a dash."""
        if not all(side in self.values for side in SIDES):
            return "-"
        difference = self.values["after"] - self.values["before"]
        text = f"{100 * difference:+.1f}" if self.percent else f"{difference:+.3g}"
        return text.replace("-0.0", "+0.0") if text == "-0.0" else text

    def _number(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"


def result_rows(results: dict) -> list[Row]:
    """All rows of a run (see `ncu_hf.reporting.results`), in the order of the table; missing groups are left out."""
    rows = _retrieval_rows(results.get("retrieval", {}))
    for name, sides in results.get("zero_shot", {}).items():
        rows += _zero_shot_rows(name, sides)
    return rows + _forget_set_rows(results.get("forget_set", {}))


def _row(group: str, name: str, sides: dict, n: int, read: Callable[[dict], tuple], percent: bool = True) -> Row:
    """`read` gives (value, interval or None) of one side."""
    found = {side: read(sides[side]) for side in SIDES if side in sides}
    values = {side: value for side, (value, _) in found.items()}
    intervals = {side: interval for side, (_, interval) in found.items() if interval is not None}
    return Row(group, name, values, intervals, n, percent)


def _metric(key: str) -> Callable[[dict], tuple]:
    return lambda numbers: (numbers[key], numbers.get("interval", {}).get(key))


def _retrieval_rows(sides: dict) -> list[Row]:
    if not sides:
        return []
    after, rows = sides["after"], []
    for direction, words in DIRECTIONS.items():
        n = after["n_images" if direction == "image_to_text" else "n_captions"]
        part = {side: numbers[direction] for side, numbers in sides.items()}
        rows += [_row("Retrieval", f"{words} {recall}", part, n, _metric(recall)) for recall in RECALLS]
        rows.append(_row("Retrieval", f"{words} median rank", part, n, _metric("median_rank"), percent=False))
    return [
        *rows,
        _row("Retrieval", "mean recall", sides, after["n_images"] + after["n_captions"], _metric("mean_recall")),
    ]


def _zero_shot_rows(name: str, sides: dict) -> list[Row]:
    if not sides:
        return []
    after = sides["after"]
    metrics = {"accuracy": "accuracy", "mean_per_class": "mean per class"}
    if after["n_classes"] > 5:
        metrics["top5"] = "top 5"
    group = "Zero-shot classification"
    label = f"{name} ({after['n_classes']} classes)"
    return [_row(group, f"{label} {words}", sides, after["n"], _metric(key)) for key, words in metrics.items()]


def _forget_set_rows(sides: dict) -> list[Row]:
    if not sides:
        return []
    metrics = {"precision": "precision", "recall": "recall", "auroc": "AUROC"}
    after = sides["after"]
    return [_row("Forget set", words, sides, after["n"], _metric(key)) for key, words in metrics.items()]


def before_after_table(results: dict) -> str:
    """Aligned table for a terminal. Shares are in percent, with their 95 % interval where there is one.

    Args:
        results (`dict`): See `ncu_hf.reporting.results`; only the groups of results are read.

    Returns:
        `str`: without line break at the end; empty if nothing was measured.
    """
    rows = result_rows(results)
    if not rows:
        return ""
    cells = [("", *_heads(rows))]
    cells += [(row.group, row.name, *_cells(row, rows)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(1, len(cells[0]))]
    lines, group = [_aligned(cells[0][1:], widths), ""], ""
    for line in cells[1:]:
        if line[0] != group:
            group = line[0]
            lines.append(f"-- {group} ".ljust(sum(widths) + 2 * len(widths) - 2, "-"))
        lines.append(_aligned(line[1:], widths))
    return "\n".join(lines)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def markdown_table(results: dict, group: str | None = None) -> str:
    """The same as Markdown.

    Args:
        results (`dict`): See `ncu_hf.reporting.results`.
        group (`str`, *optional*): Only these rows: `"Retrieval"`, `"Zero-shot classification"` or `"Forget set"`.

    Returns:
        `str`: empty if there are no such rows.
    """
    rows = [row for row in result_rows(results) if group in (None, row.group)]
    if not rows:
        return ""
    heads = _heads(rows)
    lines = [heads, ("---", *["---:"] * (len(heads) - 1))]
    lines += [(row.name, *_cells(row, rows)) for row in rows]
    return "\n".join("| " + " | ".join(escape_cell(cell) for cell in line) + " |" for line in lines)


def escape_cell(text: object) -> str:
    """Text for one cell of a Markdown table, on one line."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _heads(rows: list[Row]) -> tuple[str, ...]:
    return ("metric", "before", "after", "difference", "n") if _has_before(rows) else ("metric", "value", "n")


def _cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    if not _has_before(rows):
        return row.value("after"), str(row.n)
    return *map(row.value, SIDES), row.difference(), str(row.n)


def _has_before(rows: list[Row]) -> bool:
    return any("before" in row.values for row in rows)

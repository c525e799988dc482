"""Bar plot of a comparison: how far each model is from the first one on each set, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ncu_hf.reporting.comparison.grid import shorten
from ncu_hf.reporting.comparison.rows import GROUPS, ComparisonRow, Estimate, comparison_rows, model_names
from ncu_hf.reporting.markdown import one_line
from ncu_hf.reporting.plots import LINES, save, tidy

# The metric drawn for each set: of zero-shot its primary one, of the others always the same.
DRAWN = {"retrieval": "mean_recall", "linear_probe": "accuracy"}
LEVEL = 0.05
BAR, SPACE = 0.19, 0.16  # inches: height of a bar, between two sets
WIDTH = 8.0  # inches
LONGEST_SET, LONGEST_MODEL = 32, 60  # characters
HATCH = "//////"


@dataclass(frozen=True)
class Bar:
    """One bar: `place` counts from the top of the panel in units of bars."""

    place: float
    model: str
    estimate: Estimate


def plot_differences(comparison: dict, path: str | Path) -> Path | None:
    """Differences to the first model in percentage points; with a single model, its values.

    A panel a group; in it the primary metric of each zero-shot set, the mean recall of each retrieval set, the accuracy
    of each linear probe. A bar that is filled stands for a difference with p < 0.05 (without a p-value: an interval
    that leaves out 0), a hatched one for all others.

    Args:
        comparison (`dict`): Content of the `--json` file of `scripts/evaluate.py`.
        path (`str` or `Path`): PNG file; its folder is made.

    Returns:
        `Path`: `None`, and no file, if there is nothing to draw.
    """
    names = model_names(comparison)
    differences, shown = len(names) > 1, names[1:] or names
    rows = [row for row in comparison_rows(comparison) if _is_drawn(row) and _estimates(row, differences)]
    panels = [
        (title, found) for group, title in GROUPS.items() if (found := [row for row in rows if row.group == group])
    ]
    if not panels:
        return None
    heights = [len(found) * (len(shown) * BAR + SPACE) for _, found in panels]
    head = 0.3 + 0.2 * (len(shown) + 2 * differences)
    figure = Figure(figsize=(WIDTH, head + sum(heights) + 0.9 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, found) in zip(all_axes, panels, strict=True):
        axes.set_title(title)
        _draw_panel(axes, found, shown, differences)
    _draw_legend(figure, names, shown)
    return save(figure, path)


def _is_drawn(row: ComparisonRow) -> bool:
    return row.metric == DRAWN[row.group] if row.group in DRAWN else row.primary


def _estimates(row: ComparisonRow, differences: bool) -> dict[str, Estimate]:
    return row.differences if differences else row.values


def _draw_panel(axes: Axes, rows: Sequence[ComparisonRow], shown: list[str], differences: bool) -> None:
    step = len(shown) + SPACE / BAR
    bars = [
        Bar(index * step + shown.index(model), model, estimate)
        for index, row in enumerate(rows)
        for model, estimate in _estimates(row, differences).items()
    ]
    _set_limits(axes, bars, differences)
    for bar in bars:
        _draw_bar(axes, bar, _colour(bar.model, shown), differences)
    axes.axvline(0, color="0.2", linewidth=1)
    axes.set_ylim((len(rows) - 1) * step + len(shown) - 0.5 + SPACE / BAR, -0.5 - SPACE / BAR)
    middle = (len(shown) - 1) / 2
    labels = [f"{_name(row.set, LONGEST_SET)}\n{row.label.removesuffix(' *')}" for row in rows]
    axes.set_yticks([index * step + middle for index in range(len(rows))], labels)
    axes.set_xlabel("difference in percentage points" if differences else "percent")
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelsize=8 if len(shown) > 1 else 7)


def _set_limits(axes: Axes, bars: list[Bar], differences: bool) -> None:
    """Room for all intervals and, beyond them, for the numbers."""
    ends = [0.0, *(100 * end for bar in bars for end in _ends(bar.estimate))]
    low, high = min(ends), max(ends)
    margin = 0.14 * max(high - low, 0.1)
    axes.set_xlim(low - margin * (low < 0 or not high), high + margin if differences else min(high + margin, 112.0))


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return low, estimate.value, high


def _draw_bar(axes: Axes, bar: Bar, colour: str, differences: bool) -> None:
    low, value, high = (100 * end for end in _ends(bar.estimate))
    solid = not differences or is_significant(bar.estimate)
    style = {"facecolor": colour if solid else "white", "hatch": None if solid else HATCH}
    axes.barh(bar.place, value, height=0.82, edgecolor=colour, linewidth=0.9, **style)
    if bar.estimate.low is not None:
        error = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axes.errorbar(value, bar.place, xerr=error, fmt="none", ecolor="0.15", elinewidth=1.1, capsize=2)
    left = value < 0
    axes.annotate(
        f"{value:+.1f}".replace("-0.0", "+0.0") if differences else f"{value:.1f}",
        (min(low, 0.0) if left else max(high, 0.0), bar.place),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center_baseline",
        fontsize=7,
        color="0.25",
    )


def is_significant(estimate: Estimate) -> bool:
    """Whether a difference is more than chance at the 5 % level, as far as its test or its interval tells."""
    if estimate.p_value is not None:
        return estimate.p_value < LEVEL
    return estimate.low is not None and estimate.high is not None and not estimate.low <= 0 <= estimate.high


def _draw_legend(figure: Figure, names: list[str], shown: list[str]) -> None:
    handles = [Patch(facecolor=_colour(model, shown), edgecolor="none") for model in shown]
    first = _name(names[0], LONGEST_MODEL)
    labels = [_name(model, LONGEST_MODEL) for model in shown]
    if len(names) > 1:
        labels = [f"{label} minus {first}" for label in labels]
        handles += [Patch(facecolor="0.5", edgecolor="0.5"), Patch(facecolor="white", edgecolor="0.5", hatch=HATCH)]
        labels += [f"filled: p < {LEVEL:g}", f"hatched: p ≥ {LEVEL:g}, or not tested"]
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=8, ncols=1)


def _colour(model: str, shown: list[str]) -> str:
    return LINES[shown.index(model) % len(LINES)]


def _name(text: str, longest: int) -> str:
    """On one line, not too long, and never taken for a formula or for a label that a legend leaves out."""
    line = shorten(one_line(text), longest).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line

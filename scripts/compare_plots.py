"""Plots of a comparison, from the numbers of its JSON file alone; each is left out where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from compare_collect import MEAN_RECALL, ZERO_SHOT
from compare_config import REFERENCE
from compare_statistics import excludes_zero
from compare_tables import heading
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncu_hf.reporting.plots import BLUE, LINES, STYLES, VERMILION, save, tidy

METRICS = (MEAN_RECALL, ZERO_SHOT)
HATCH = "//////"
BAR = 0.34  # inches a bar
LEGEND_COLUMNS = 4
INTERVALS = {
    "over_items": {"color": "0.62", "linewidth": 5.0, "solid_capstyle": "butt"},
    "over_seeds": {"color": "0.1", "linewidth": 1.1, "marker": "|", "markersize": 7},
}


class Point(NamedTuple):
    """A place on a curve, in percent: mean over seeds and deviation."""

    x: float
    mean: float
    sd: float


# What a curve is of -> its points.
Curves = dict[str, list[Point]]


def draw_plots(numbers: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write all plots for which there are numbers, in place of earlier ones; returns their files by name."""
    drawers: dict[str, Callable[[dict[str, Any], Path], Path | None]] = {
        "noise": plot_noise,
        "differences": plot_differences,
        "detection": plot_detection,
        "figure4": plot_figure4,
        "interpolation": plot_interpolation,
    }
    drawn = {}
    for name, draw in drawers.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if draw(numbers, path) is not None:
            drawn[name] = path
    return drawn


def shown_noise_share(numbers: dict[str, Any]) -> float:
    """Of plots of one noise share: the one that is asked for, or the largest."""
    comparison = numbers["comparison"]
    asked = comparison["shown_noise_share"]
    return max(comparison["noise_shares"]) if asked is None else asked


def plot_noise(numbers: dict[str, Any], path: Path) -> Path | None:
    """Mean over seeds against the share of noise, with a band of one deviation, of entries at two shares at least."""
    parts = set(numbers["comparison"]["parts"].values())
    panels = {}
    for metric in METRICS:
        curves = _curves(
            (row["entry"], 100 * row["noise_share"], row)
            for row in numbers["summary"]
            if row["metric"] == metric and row["entry"] not in parts
        )
        panels[metric] = {name: points for name, points in curves.items() if len(points) > 1}
    if not any(panels.values()):
        return None
    return _plot_curves(panels, "percent of the captions with noise", path)


def plot_interpolation(numbers: dict[str, Any], path: Path) -> Path | None:
    """Models between reference (0) and result (1), at the shown noise share."""
    noise_share = shown_noise_share(numbers)
    rows = [row for row in numbers["interpolation"] if row["noise_share"] == noise_share]
    ends = {(row["entry"], row["metric"]): row for row in numbers["summary"] if row["noise_share"] == noise_share}
    panels: dict[str, Curves] = {}
    for metric in METRICS:
        for entry in dict.fromkeys(row["entry"] for row in rows):
            curve = [
                _point(weight, [row["values"][metric] for row in rows if _is(row, entry, weight, metric)])
                for weight in sorted({row["weight"] for row in rows if metric in row["values"]})
            ]
            for weight, name in ((0.0, REFERENCE), (1.0, entry)):
                if (name, metric) in ends:
                    curve.append(_summary_point(weight, ends[name, metric]))
            panels.setdefault(metric, {})[entry] = sorted({point.x: point for point in curve}.values())
    if not panels:
        return None
    return _plot_curves(panels, "weight of the result (0: reference)", path, title=_noise_title(noise_share))


def _is(row: dict[str, Any], entry: str, weight: float, metric: str) -> bool:
    return row["entry"] == entry and row["weight"] == weight and metric in row["values"]


def plot_figure4(numbers: dict[str, Any], path: Path) -> Path | None:
    """An entry on parts of the training pairs, at equal epochs, at the shown noise share (the paper's Figure 4)."""
    comparison, noise_share = numbers["comparison"], shown_noise_share(numbers)
    if not comparison["parts"]:
        return None
    whole = comparison["figure4"]["entry"]
    shares = {name: 100 * float(share) for share, name in comparison["parts"].items()} | {whole: 100.0}
    rows = [row for row in numbers["summary"] if row["noise_share"] == noise_share]
    panels: dict[str, Curves] = {}
    for metric in METRICS:
        found = [row for row in rows if row["metric"] == metric]
        curves = _curves((whole, shares[row["entry"]], row) for row in found if row["entry"] in shares)
        for row in found:
            if row["entry"] == REFERENCE and curves:
                curves[REFERENCE] = [_summary_point(x, row) for x in (min(shares.values()), 100.0)]
        if curves:
            panels[metric] = curves
    if not panels:
        return None
    return _plot_curves(panels, "percent of the training pairs", path, title=_noise_title(noise_share))


def _curves(points: Iterable[tuple[str, float, dict[str, Any]]]) -> Curves:
    curves: Curves = {}
    for name, x, row in points:
        curves.setdefault(name, []).append(_summary_point(x, row))
    return {name: sorted(curve) for name, curve in curves.items()}


def _summary_point(x: float, row: dict[str, Any]) -> Point:
    return Point(x, 100 * row["mean"], 100 * (row["sd"] or 0.0))


def _point(x: float, values: list[float]) -> Point:
    return Point(x, 100 * fmean(values), 100 * stdev(values) if len(values) > 1 else 0.0)


def _plot_curves(panels: dict[str, Curves], label: str, path: Path, title: str = "") -> Path:
    """A panel a metric; the same colour for the same curve in all of them, the reference in grey."""
    panels = {metric: curves for metric, curves in panels.items() if curves}
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure = Figure(
        figsize=(1.0 + 4.8 * len(panels), 4.2 + 0.22 * (len(names) // LEGEND_COLUMNS)), layout="constrained"
    )
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (metric, curves) in zip(all_axes, panels.items(), strict=True):
        for name, points in curves.items():
            _draw_curve(axes, points, name, **_style(name, names))
        axes.set(title=heading(metric), xlabel=label, ylabel="percent, mean ± deviation over seeds")
        tidy(axes)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def _draw_curve(axes: Axes, points: list[Point], name: str, **style: str) -> None:
    places, means = [point.x for point in points], [point.mean for point in points]
    low, high = ([point.mean + sign * point.sd for point in points] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=style["color"], alpha=0.09, linewidth=0)
    axes.plot(places, means, label=name, marker="o", markersize=4, linewidth=1.6, **style)


def _style(name: str, names: list[str]) -> dict[str, str]:
    if name == REFERENCE:
        return {"color": "0.4", "linestyle": ":"}
    index = [other for other in names if other != REFERENCE].index(name)
    return {"color": LINES[index % len(LINES)], "linestyle": STYLES[index // len(LINES) % len(STYLES)]}


def plot_differences(numbers: dict[str, Any], path: Path) -> Path | None:
    """Bars of the differences to the baseline (or to the reference, without one) at the shown noise share.

    The black line is the interval over seeds, the grey one that over items; a bar is filled where both leave 0 out.
    """
    noise_share = shown_noise_share(numbers)
    against = numbers["comparison"]["baseline"] or REFERENCE
    panels = {
        metric: [
            row
            for row in numbers["differences"]
            if (row["noise_share"], row["against"], row["metric"]) == (noise_share, against, metric)
        ]
        for metric in METRICS
    }
    panels = {metric: rows for metric, rows in panels.items() if rows}
    if not panels:
        return None
    height = 1.7 + BAR * max(map(len, panels.values()))
    figure = Figure(figsize=(2.0 + 4.2 * len(panels), height), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=len(panels) > 1)[0]
    for axes, (metric, rows) in zip(all_axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            _draw_bar(axes, place, row)
        axes.axvline(0, color="0.2", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["entry"] for row in rows])
        axes.set(title=heading(metric), xlabel=f"percentage points above {against}", ylim=(len(rows) - 0.4, -0.6))
        tidy(axes)
        axes.grid(visible=False, axis="y")
    figure.suptitle(
        f"{_noise_title(noise_share)}. 95 % intervals: black over seeds, grey over items; filled: both leave 0 out",
        fontsize=9,
    )
    return save(figure, path)


def _draw_bar(axes: Axes, place: int, row: dict[str, Any]) -> None:
    colour = BLUE if row["difference"] >= 0 else VERMILION
    solid = excludes_zero(row["over_seeds"]) and excludes_zero(row["over_items"])
    fill = {"facecolor": colour if solid else "white", "hatch": None if solid else HATCH}
    axes.barh(place, 100 * row["difference"], height=0.62, edgecolor=colour, alpha=0.75, linewidth=0.9, **fill)
    for kind, style in INTERVALS.items():
        if row[kind] is not None:
            axes.plot([100 * bound for bound in row[kind]], [place, place], **style)


def plot_detection(numbers: dict[str, Any], path: Path) -> Path | None:
    """AUROC and precision of the forget set before, after the first phase, and after, at the shown noise share."""
    noise_share = shown_noise_share(numbers)
    parts = set(numbers["comparison"]["parts"].values())
    runs = [
        run
        for run in numbers["runs"]
        if run["noise_share"] == noise_share and run["forget_set"] and run["entry"] not in {REFERENCE, *parts}
    ]
    if not runs:
        return None
    entries = list(dict.fromkeys(run["entry"] for run in runs))
    figure = Figure(figsize=(9.6, 1.7 + BAR * len(entries)), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("auroc", "precision"), strict=True):
        for place, entry in enumerate(entries):
            _draw_stages(axes, place, [run["forget_set"] for run in runs if run["entry"] == entry], key)
        axes.set_yticks(range(len(entries)), entries)
        axes.set(title={"auroc": "AUROC"}.get(key, key), xlabel="percent", ylim=(len(entries) - 0.4, -0.6))
        tidy(axes)
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"{_noise_title(noise_share)}: clean confidence against the known mismatches", fontsize=10)
    return save(figure, path)


def _draw_stages(axes: Axes, place: int, found: list[dict[str, dict[str, float]]], key: str) -> None:
    """The stages of one entry on its line, mean over seeds."""
    stages = {stage: 100 * fmean(one[stage][key] for one in found if stage in one) for stage in found[0]}
    values = list(stages.values())
    axes.plot([min(values), max(values)], [place, place], color="0.75", linewidth=1, zorder=1)
    looks = {"before": ("o", "white", "before"), "after": ("o", BLUE, "after")}
    for stage, value in stages.items():
        marker, fill, label = looks.get(stage, ("D", LINES[4], f"after {stage.replace('_', ' ')}"))
        axes.plot(value, place, marker=marker, color=fill, markeredgecolor="0.2", linestyle="", label=label, zorder=2)


def _noise_title(noise_share: float) -> str:
    return f"{100 * noise_share:g} % of the captions with noise"

"""Plots of a run as PNG files. Only `Figure` objects: no window, no global state of pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

DPI = 150
# Okabe and Ito's palette, distinguishable with every kind of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
STYLES = ("-", "--", "-.", ":")
KINDS = {
    "positives": ("positive pairs", BLUE),
    "negatives_mean": ("mean of negatives", GREEN),
    "negatives_top": ("top 5 % of negatives", VERMILION),
}
SUMMARY_LOSS = "train_loss"  # Trainer's mean over the whole run, one value at its end
PLOT_SHARE = 0.78  # of the height; the legend has the rest to itself
WIDE = 30.0  # ratio of highest to lowest value above which a logarithmic axis reads better


def plot_losses(log_history_by_phase: Mapping[str, Sequence[Mapping]], path: str | Path) -> Path:
    """Training losses: one panel a phase, one line for each key that ends in `_loss`, and the total.

    Args:
        log_history_by_phase (`Mapping[str, Sequence[Mapping]]`): `trainer.state.log_history` of each phase, by its
            name. Values that are not finite are left out.
        path (`str` or `Path`): PNG file; its folder is made.

    Raises:
        ValueError: no phase logged a loss.
    """
    phases = {name: _loss_curves(history) for name, history in log_history_by_phase.items()}
    phases = {name: curves for name, curves in phases.items() if curves}
    if not phases:
        raise ValueError("no losses to plot: no phase has a line with a step and a loss")
    figure = Figure(figsize=(1.2 + 4.8 * len(phases), 4.0), layout="constrained")
    for axes, (name, curves) in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases.items(), strict=True):
        _draw_losses(axes, name, curves)
    return save(figure, path)


def _loss_curves(history: Sequence[Mapping]) -> dict[str, list[tuple[float, float]]]:
    """Points (step, value) of each loss, in order of steps."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        for key, value in line.items():
            wanted = key == "loss" or (key.endswith("_loss") and key != SUMMARY_LOSS and not key.startswith("eval_"))
            if wanted and "step" in line and math.isfinite(value):
                curves.setdefault(key, []).append((line["step"], value))
    return {key: sorted(points) for key, points in curves.items()}


def _draw_losses(axes: Axes, name: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    parts = [key for key in curves if key != "loss"]
    for index, key in enumerate(parts):
        style = STYLES[index // len(LINES) % len(STYLES)]
        label = key.removesuffix("_loss").replace("_", " ")
        _draw_curve(axes, curves[key], label, color=LINES[index % len(LINES)], linestyle=style, linewidth=1.6)
    if "loss" in curves and len(parts) != 1:  # of a single part the total would only hide the line
        _draw_curve(axes, curves["loss"], "total", color="0.35", linewidth=2.2, alpha=0.7, zorder=1)
    values = [value for points in curves.values() for _, value in points]
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    tidy(axes)
    axes.legend(loc="best", frameon=False, fontsize=9)


def _draw_curve(axes: Axes, points: list[tuple[float, float]], label: str, **style) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, label=label, marker="o" if len(points) < 3 else None, markersize=4, **style)


def plot_similarities(
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor],
    path: str | Path,
    *,
    titles: tuple[str, str] = ("before", "after"),
) -> Path:
    """Distributions of cosines of positives, mean negatives and top 5 % negatives, on the same axes (paper, Figure 5).

    Args:
        before, after (`Mapping[str, Tensor]`): From `ncu_hf.evaluation.similarity.similarity_distributions`. `before`
            may be `None` where there is no earlier model.
        path (`str` or `Path`): PNG file; its folder is made.
        titles (`tuple[str, str]`, *optional*): Of the two panels.
    """
    panels = [(title, data) for title, data in zip(titles, (before, after), strict=True) if data is not None]
    values = {id(data): {kind: _finite(data[kind]) for kind in KINDS} for _, data in panels}
    everything = numpy.concatenate([part for parts in values.values() for part in parts.values()])
    bins = _shared_bins(everything)
    figure = Figure(figsize=(1.0 + 4.8 * len(panels), 4.0), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (title, data) in zip(all_axes, panels, strict=True):
        for kind, (label, colour) in KINDS.items():
            _draw_distribution(axes, values[id(data)][kind], bins, label, colour)
        axes.set_title(title if len(panels) > 1 else "")
        axes.set_xlabel("cosine similarity of image and text")
        tidy(axes)
        _draw_legend(axes)
    all_axes[0].set_ylabel("density")
    _leave_room_for_legend(all_axes[0])
    return save(figure, path)


def _draw_distribution(axes: Axes, values: numpy.ndarray, bins: numpy.ndarray, label: str, colour: str) -> None:
    """Filled histogram with a dashed line at the mean, which the legend states."""
    if not len(values):
        return
    mean = float(values.mean())
    style = {"bins": bins, "density": True, "color": colour}
    axes.hist(values, histtype="stepfilled", alpha=0.25, **style)
    axes.hist(values, histtype="step", linewidth=1.6, label=f"{label}, mean {mean:.2f}", **style)
    axes.axvline(mean, ymax=PLOT_SHARE, color=colour, linestyle="--", linewidth=1)


def _draw_legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:  # none where no value was finite
        axes.legend(loc="upper right", frameon=False, fontsize=9)


def _leave_room_for_legend(axes: Axes) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] / PLOT_SHARE)


def _shared_bins(values: numpy.ndarray) -> numpy.ndarray:
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    margin = max(0.02 * (high - low), 1e-3)
    return numpy.linspace(low - margin, high + margin, 61)


def _finite(values: Tensor) -> numpy.ndarray:
    values = values.detach().float().cpu().numpy().ravel()
    return values[numpy.isfinite(values)]


def tidy(axes: Axes) -> None:
    """The look of all plots: no box, a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10)
    axes.xaxis.label.set_size(11)
    axes.yaxis.label.set_size(11)
    axes.title.set_size(12)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
    return path

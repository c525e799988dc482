"""Plots of docs/performance.md, from the JSON files that `benchmark.py --json` wrote.

    python scripts/plot_benchmarks.py docs/performance

reads FOLDER/{objective,text,step,step_gpu,memory,scaling}.json, those that are there, and writes a PNG beside each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError
from ncu_hf.reporting.plots import BLUE, GREEN, LINES, SKY, VERMILION, save, tidy

Report = dict[str, Any]
NAMES = {
    "ours": "ours",
    "ours_paper": "ours, formulation `paper`",
    "reference": "released structure",
    "products": "the three matrix products",
    "longest": "padded to the batch's longest",
    "padded_77": "padded to 77",
    "ours_compiled": "ours, compiled",
    "floor": "encoding alone (floor)",
    "floor_compiled": "encoding alone, compiled",
    "plain_clip": "plain CLIP, padded to 77",
    "released": "released structure",
}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    drawers: dict[str, Callable[[Report], Figure]] = {
        "objective": draw_objective,
        "text": draw_text,
        "step": draw_step,
        "step_gpu": draw_step,
        "memory": draw_memory,
        "scaling": draw_scaling,
    }
    found = [name for name in drawers if (folder / f"{name}.json").is_file()]
    if not found:
        raise InputError(f"{folder}: has none of {', '.join(f'{name}.json' for name in drawers)}.")
    for name in found:
        try:
            figure = drawers[name](json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{folder / name}.json: is no report of `benchmark.py {name.removesuffix('_gpu')}` ({error!r})."
            ) from error
        print(save(figure, folder / f"{name}.png"))


def draw_objective(report: Report) -> Figure:
    """Time and memory of the losses over N."""
    rows = sorted(report["objective"], key=lambda row: row["n"])
    n = [row["n"] for row in rows]
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    colours = {"reference": VERMILION, "ours": BLUE, "ours_paper": SKY, "products": "0.5"}
    for name, colour in colours.items():
        time.plot(n, [row[f"{name}_ms"] for row in rows], "o-", color=colour, label=NAMES[name], markersize=4)
        if name != "products":
            squares = [row[f"{name}_peak_n2_floats"] for row in rows]
            memory.plot(n, squares, "o-", color=colour, label=NAMES[name], markersize=4)
    time.set(xscale="log", yscale="log", xlabel="N, pairs of a batch", ylabel="loss and gradient, ms")
    memory.set(xscale="log", xlabel="N, pairs of a batch", ylabel="peak memory, matrices of N² floats", ylim=(0, None))
    for axes in (time, memory):
        axes.set_xticks(n, [str(value) for value in n])
        axes.minorticks_off()
        _finish(axes)
    return figure


def draw_text(report: Report) -> Figure:
    """Time of both text passes, and the tokens that they encode."""
    row = report["rows"][0]
    names = ("ours", "longest", "padded_77")
    figure = Figure(figsize=(9.0, 2.2), layout="constrained")
    time, tokens = figure.subplots(1, 2)
    _bars(time, names, [row[f"{name}_ms"] for name in names], "both text passes, forward and backward, ms")
    _bars(tokens, names, [row[f"{name}_tokens"] for name in names], "tokens encoded")
    return figure


def draw_step(report: Report) -> Figure:
    """Samples a second, and memory, of whole steps."""
    rows = report["step"]
    names = [row["variant"] for row in rows]
    figure = Figure(figsize=(9.0, 0.9 + 0.34 * len(rows)), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    _bars(speed, names, [row["samples_a_second"] for row in rows], "samples a second")
    _bars(memory, names, [row["peak_gib"] for row in rows], "peak memory, GiB")
    return figure


def draw_memory(report: Report) -> Figure:
    """Memory of a step over the batch, a line for each size of the chunks."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    rows = sorted(report["steps"], key=lambda row: (math.inf if row["chunk"] == "none" else row["chunk"], row["batch"]))
    for colour, (chunk, group) in zip(LINES, groupby(rows, key=lambda row: row["chunk"]), strict=False):
        known = [row for row in group if row["step_gib"] is not None]
        label = "no chunks" if chunk == "none" else f"chunks of {chunk}"
        total = [row["step_gib"] + row["standing_gib"] for row in known]
        axes.plot([row["batch"] for row in known], total, "o-", color=colour, label=label, markersize=4)
    axes.set(xlabel="N, pairs of a batch", ylabel="memory of a step, GiB", yscale="log")
    _finish(axes)
    return figure


def draw_scaling(report: Report) -> Figure:
    """Efficiency of steps and of the losses, and memory of the losses, over the number of processes."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    efficiency, memory = figure.subplots(1, 2)
    lines = {"step, weak": report["weak"], "step, strong": report["strong"]}
    for n, group in groupby(report["losses"], key=lambda row: row["n"]):
        lines[f"losses, N = {n:,}"] = list(group)
    for (label, rows), colour in zip(lines.items(), LINES, strict=False):
        processes = [row["processes"] for row in rows]
        efficiency.plot(processes, [row["efficiency"] for row in rows], "o-", color=colour, label=label, markersize=4)
    largest = [row for row in report["losses"] if row["n"] == report["losses"][-1]["n"]]
    processes = [row["processes"] for row in largest]
    memory.plot(processes, [row["peak_mib"] for row in largest], "o-", color=GREEN, label="losses", markersize=4)
    first = largest[0]["peak_mib"] * largest[0]["processes"]
    memory.plot(processes, [first / count for count in processes], "--", color="0.5", label="1/W")
    efficiency.set(xlabel="processes", ylabel="efficiency", ylim=(0, 1.1))
    memory.set(xlabel="processes", ylabel=f"peak memory, MiB (N = {largest[0]['n']:,})", ylim=(0, None))
    for axes in (efficiency, memory):
        axes.set_xticks(processes)
        _finish(axes)
    return figure


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float | None], label: str) -> None:
    labels = [NAMES.get(name, name.replace("_", " ")) for name in names]
    bars = axes.barh(labels, [value or 0 for value in values], color=[BLUE if "ours" in n else "0.6" for n in names])
    axes.bar_label(bars, ["does not fit" if value is None else f"{value:,.4g}" for value in values], padding=3, size=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(label)
    tidy(axes)


def _finish(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


if __name__ == "__main__":
    run_main(main)

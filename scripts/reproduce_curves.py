"""Draw Figure 4: accuracy and recall against the number of pairs that NCU ran on, from what evaluate.py wrote.

    python scripts/reproduce_curves.py comparison.json --reference clip --points ncu-500000=500000 ncu=2905954 \
        --output figure4.png

Bars are 95 % intervals; the reference model is a line with its interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncu_hf.checkpoint import read_json
from ncu_hf.cli import run_main, script_parser
from ncu_hf.comparing import model_sources
from ncu_hf.errors import InputError, one_of
from ncu_hf.reporting.plots import BLUE, DPI, VERMILION

# Estimate and the bounds of its interval, in percent.
Bounds = tuple[float, float, float]
# Group, metric and title of a panel.
PANELS = {
    "accuracy_set": ("zero_shot", "accuracy", "zero-shot accuracy, {}"),
    "recall_set": ("retrieval", "mean_recall", "mean of six recalls, {}"),
}


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("comparison", type=Path, help="JSON file that evaluate.py wrote")
    parser.add_argument("--reference", required=True, metavar="MODEL", help="model before NCU, as given to evaluate.py")
    parser.add_argument("--points", required=True, nargs="+", metavar="MODEL=PAIRS", help="models after NCU")
    parser.add_argument("--accuracy_set", default="imagenet1k", help="set of the left panel")
    parser.add_argument("--recall_set", default="mscoco_5k", help="set of the right panel")
    parser.add_argument("--title", default="", help="above the panels")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="PNG file")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    results = read_results(arguments.comparison)
    sizes = dict(map(point, arguments.points))
    reference, *models = (found.name for found in model_sources([arguments.reference, *sizes]))
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for axes, (side, (group, metric, title)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        name = getattr(arguments, side)
        points = zip(sizes.values(), (estimate(results, model, group, name, metric) for model in models), strict=True)
        draw(axes, estimate(results, reference, group, name, metric), dict(sorted(points)))
        axes.set(xlabel="pairs that NCU ran on", ylabel="percent", title=title.format(name))
    figure.suptitle(arguments.title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=DPI)
    print(f"Written: {arguments.output}")


def read_results(path: Path) -> dict[str, Any]:
    """Numbers of all models.

    Raises:
        InputError: not a file that evaluate.py wrote.
    """
    try:
        return read_json(path)["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no report of `evaluate.py --json` ({type(error).__name__}).") from error


def point(text: str) -> tuple[str, int]:
    """`"outputs/ncu=500000"` -> model and number of pairs."""
    model, _, pairs = text.rpartition("=")
    if not model or not pairs.isdecimal():
        raise InputError(f"--points {text!r}: expected MODEL=PAIRS.")
    return model, int(pairs)


def estimate(results: dict[str, Any], model: str, group: str, name: str, metric: str) -> Bounds:
    """One number with its interval.

    Raises:
        InputError: the model was not measured on the set.
    """
    sets = results[one_of("model", model, results)].get(group, {})
    numbers = sets[one_of(f"{group} of {model}", name, sets)]
    low, high = numbers["interval"][metric]
    return 100 * numbers[metric], 100 * low, 100 * high


def draw(axes: Axes, reference: Bounds, curve: dict[int, Bounds]) -> None:
    middle, low, high = reference
    axes.axhspan(low, high, color=VERMILION, alpha=0.12, linewidth=0)
    axes.axhline(middle, color=VERMILION, linestyle="--", label="reference CLIP")
    values = [value for value, _, _ in curve.values()]
    # An interval of few resamples need not hold the value.
    below = [max(value - low, 0) for value, low, _ in curve.values()]
    above = [max(high - value, 0) for value, _, high in curve.values()]
    axes.errorbar(list(curve), values, yerr=(below, above), color=BLUE, marker="o", capsize=3, label="after NCU")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    run_main(main)

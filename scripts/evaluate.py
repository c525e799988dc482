"""Measure any number of CLIPs on any number of sets, and compare them item by item.

    python scripts/evaluate.py --models openai/clip-vit-base-patch32 outputs/mine --suite paper retrieval --json a.json
    python scripts/evaluate.py --models ./a ./b --suite pets/labels.csv pairs.csv --plot differences.png
    accelerate launch scripts/evaluate.py --models outputs/mine --suite probe --against paper/cc3m/vit-b-16

A set is a name (cifar10, imagenet1k, flickr30k_1k, ...), a Hub id (clip-benchmark/wds_...), a folder with labels.csv
and classes.json, or pairs in any format that training reads. Differences are taken to the first model: McNemar's test
for accuracy, a paired bootstrap for recall. Embeddings are kept in ~/.cache/ncu_hf (or $NCU_HF_CACHE).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

from transformers.utils import logging as transformers_logging

from ncu_hf.cli import run_main, script_parser
from ncu_hf.comparing import Comparison, ComparisonSettings, compare
from ncu_hf.distributed import barrier
from ncu_hf.errors import InputError, one_line
from ncu_hf.evaluation.linear_probe import FEATURES
from ncu_hf.reporting.audit import refuse_existing
from ncu_hf.reporting.comparison import (
    comparison_csv,
    comparison_markdown,
    comparison_table,
    per_class_tables,
    plot_differences,
)
from ncu_hf.reporting.plots import plot_similarities
from ncu_hf.reporting.results import publishable

PLOTS = ("plot", "similarity_plot")
OUTPUTS = ("json", "csv", "markdown", *PLOTS)


def parse() -> argparse.Namespace:
    defaults = ComparisonSettings(models=[], suite=[])
    parser = script_parser(__doc__)
    parser.add_argument("--models", required=True, nargs="+", metavar="MODEL", help="folders or Hub ids, id@revision")
    parser.add_argument("--suite", required=True, nargs="+", metavar="SET", help="suites, names, Hub ids or paths")
    parser.add_argument("--probe", action="store_true", help="also a linear probe on each labelled set")
    parser.add_argument("--probe_features", choices=FEATURES, default=defaults.probe_features)
    parser.add_argument("--paper_metrics", action="store_true", help="plain accuracy is primary for every set")
    parser.add_argument("--per_class", action="store_true", help="accuracy of each class, most frequent confusions")
    parser.add_argument("--against", metavar="paper[/DATA[/ARCHITECTURE]]", help="published numbers beside ours")
    parser.add_argument("--image_column", help="of sets that are tables of pairs")
    parser.add_argument("--caption_column", help="of sets that are tables of pairs")
    parser.add_argument("--image_root", help="folder that relative image paths start from")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="images or texts a forward pass")
    parser.add_argument("--workers", type=int, help="processes that decode images")
    parser.add_argument("--no_cache", action="store_true", help="encode anew, keep nothing")
    parser.add_argument("--use_cpu", action="store_true", help="even where there is a GPU")
    for output, what in zip(
        OUTPUTS,
        ("all numbers", "all numbers, one a line", "the tables", "differences with intervals", "Figure 5 of the paper"),
        strict=True,
    ):
        parser.add_argument(f"--{output}", type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("ncu_hf").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler: its lines would be there twice
    transformers_logging.disable_progress_bar()
    check_outputs(outputs(arguments), arguments.overwrite)
    settings = ComparisonSettings(
        models=arguments.models,
        suite=arguments.suite,
        probe=arguments.probe,
        probe_features=arguments.probe_features,
        paper_metrics=arguments.paper_metrics,
        per_class=arguments.per_class,
        against=arguments.against,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        image_root=arguments.image_root,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        use_cache=not arguments.no_cache,
        use_cpu=arguments.use_cpu,
        similarities=arguments.similarity_plot is not None,
    )
    comparison = compare(settings)
    if comparison is not None:
        write(comparison, outputs(arguments), arguments.per_class)
    barrier()


def outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    return {name: path for name in OUTPUTS if (path := getattr(arguments, name)) is not None}


def check_outputs(paths: dict[str, Path], overwrite: bool) -> None:
    """Refuse, before the work, files that could not be written after it."""
    flags: dict[Path, str] = {}
    for name, path in paths.items():
        if (other := flags.setdefault(path.resolve(), f"--{name}")) != f"--{name}":
            raise InputError(f"--{name}: {path} is the file of {other} too; give each its own.")
        if name in PLOTS and path.suffix.lower() != ".png":
            raise InputError(f"--{name}: a plot is a PNG file, so its name must end in .png, got {path}.")
    refuse_existing({path: f"--{name}" for name, path in paths.items()}, overwrite)


def write(comparison: Comparison, paths: dict[str, Path], per_class: bool) -> None:
    """Print the table, and write the files that were asked for."""
    numbers = publishable(comparison.numbers)
    print(comparison_table(numbers))
    if per_class:
        print(f"\n{per_class_tables(numbers)}")
    writers = {
        "json": lambda path: path.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", "utf-8"),
        "csv": lambda path: path.write_text(comparison_csv(numbers), "utf-8"),
        "markdown": lambda path: path.write_text(comparison_markdown(numbers) + "\n", "utf-8"),
        "plot": lambda path: plot_differences(numbers, path),
        "similarity_plot": lambda path: draw_similarities(comparison, path),
    }
    failed = []
    for name, path in paths.items():
        try:
            writers[name](path)
            print(f"Written: {path}")
        except OSError as error:  # a full disk at one file is no reason to lose the others
            failed.append(f"--{name}: {path} cannot be written ({one_line(error)}).")
    if failed:
        raise InputError(" ".join(failed))


def draw_similarities(comparison: Comparison, path: Path) -> None:
    """Distributions of the first two models on the first captioned set (the paper's Figure 5)."""
    models = [(name, next(iter(sets.values()))) for name, sets in comparison.distributions.items()][:2]
    before = models[0][1] if len(models) == 2 else None
    plot_similarities(before, models[-1][1], path, titles=(models[0][0], models[-1][0]))


if __name__ == "__main__":
    run_main(main)

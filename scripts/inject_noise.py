"""Write pairs with a known share of wrong captions to a parquet file, to study noise with any other program.

    python scripts/inject_noise.py --data pairs.csv --noise_share 0.3 --noise_kind hard --output noisy.parquet

The file has the columns key, image (encoded, as stored), caption, mismatched (the ground truth) and original_caption,
one row for each pair, in stored order. The captions are those of a training run with the same flags on the same data.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ncu_hf.cli import run_main, script_parser
from ncu_hf.config import DataArguments
from ncu_hf.data.files import expand, public_address
from ncu_hf.data.ground_truth import write_noisy_pairs
from ncu_hf.data.sources.locate import is_url
from ncu_hf.errors import InputError
from ncu_hf.opening import open_training_pairs
from ncu_hf.reporting.audit import refuse_existing

# Flags of a run that this script knows too, and the type of those without a default.
FLAGS = (
    *("image_column", "caption_column", "delimiter", "image_root", "split", "data_format", "data_revision"),
    *("data_config", "caption_tokenizer", "train_limit", "train_subset", "subset_seed"),
    *("noise_share", "noise_seed", "noise_kind", "noise_class_column"),
)
TYPES = {"train_limit": int}
SECONDS_BETWEEN_LINES = 30.0


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--data", required=True, help="csv, parquet, WebDataset tars, folder or Hub data set")
    parser.add_argument("--output", required=True, type=Path, help="parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    for setting in fields(DataArguments):
        if setting.name in FLAGS:
            kind = TYPES.get(setting.name, str) if setting.default is None else type(setting.default)
            parser.add_argument(f"--{setting.name}", type=kind, default=setting.default, help=setting.metadata["help"])
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Refuse a file that cannot be written or that would be read as one of the pairs' own, and a stream."""
    if arguments.output.suffix != ".parquet":
        raise InputError(f"--output must end in .parquet, got {arguments.output}.")
    refuse_existing({arguments.output: "--output"}, arguments.overwrite)
    if is_url(arguments.data):
        raise InputError(f"--data {public_address(arguments.data)}: is only read as a stream. Download the files.")
    output = arguments.output.resolve()
    for path in expand(arguments.data):
        if output.is_relative_to(path.resolve()):
            raise InputError(f"--output {arguments.output} lies in --data {arguments.data}; choose another place.")


def main() -> None:
    arguments = parse()
    data = DataArguments(
        train_data=arguments.data, streaming=False, **{name: getattr(arguments, name) for name in FLAGS}
    )
    if not data.noise_share:
        raise InputError("--noise_share: give the share of the pairs to change, above 0, e.g. 0.3.")
    check(arguments)
    source = open_training_pairs(data, torch.device("cpu"))
    between = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    with tqdm(total=len(source), unit=" pairs", mininterval=between) as bar:
        missing = write_noisy_pairs(source, arguments.output, bar.update)
    noise = source.description["noise"]
    print(f"{len(source):,} pairs, {noise['chosen']:,} chosen, {noise['mismatched']:,} mismatched: {arguments.output}")
    if missing:
        print(f"without image, for it cannot be read: {missing:,}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)

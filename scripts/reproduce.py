"""Reproduce a table or figure of the paper: train the models that it compares, measure them, write it.

    python scripts/reproduce.py table1
    python scripts/reproduce.py table4 --training_data cc3m --architecture vit-b-32 --dry_run
    python scripts/reproduce.py table2 --training_data cc3m --architecture vit-b-16 --reference me/clip-b16-cc3m
    python scripts/reproduce.py figure5 --stand_in stand-in

docs/reproduction.md says what each one trains, measures and stands beside. Models are kept by training data,
architecture and method below --output_dir, so that all tables share them. What is complete is skipped, what was killed
goes on: run the same command again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from reproduce_run import run, show
from reproduce_settings import PaperSetting, Setting, StandInSetting
from reproduce_steps import plan
from reproduce_tables import ARCHITECTURE_LABELS, DATA_LABELS, EXPERIMENTS, chosen_rows

from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("what", choices=EXPERIMENTS, help="table or figure of the paper")
    parser.add_argument("--training_data", choices=DATA_LABELS, help="only the rows of this data set")
    parser.add_argument("--architecture", choices=ARCHITECTURE_LABELS, help="only the rows of this image encoder")
    parser.add_argument("--reference", metavar="MODEL", help="start from this CLIP; by default one is trained first")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/reproduction"), metavar="FOLDER")
    parser.add_argument("--processes", type=int, metavar="N", help="one a GPU, all by default; with --stand_in, one")
    parser.add_argument("--chunk_size", type=int, metavar="ROWS", help="lower it where memory does not suffice")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--stand_in", type=Path, metavar="FOLDER", help="on what stand_in.py wrote, with a tiny model")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    rows = chosen_rows(arguments.what, arguments.training_data, arguments.architecture)
    if arguments.reference is not None and len(rows) > 1:
        raise InputError("--reference is one model: name its row with --training_data and --architecture.")
    setting = choose_setting(arguments)
    steps = plan(arguments.what, rows, setting, arguments.reference)
    if arguments.dry_run:
        show(steps, setting.output)
        return
    run(steps, setting.output)
    print(f"\n{setting.title(EXPERIMENTS[arguments.what].shows)}: {setting.output / arguments.what}")


def choose_setting(arguments: argparse.Namespace) -> Setting:
    """The paper's data on the GPUs of this machine, or the stand-in folder.

    Raises:
        InputError: no GPU here, no stand-in data, or a number below 1.
    """
    for name in ("processes", "chunk_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}.")
    if arguments.stand_in is not None:
        return StandInSetting.of(arguments.output_dir, arguments.stand_in, arguments.processes)
    gpus = torch.cuda.device_count()
    if not gpus and not arguments.dry_run:
        raise InputError(
            "no GPU here. --dry_run prints the commands for a machine that has some; --stand_in FOLDER runs them on "
            "drawn scenes, on a CPU."
        )
    return PaperSetting(arguments.output_dir, arguments.processes or gpus or None, arguments.chunk_size)


if __name__ == "__main__":
    run_main(main)

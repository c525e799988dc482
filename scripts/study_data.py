"""Write the data of a study of methods: pairs to train on, clean pairs to measure on, labelled sets.

    python scripts/study_data.py scenes studies/scenes --train_scenes 6000 --eval_scenes 1000
    python scripts/study_data.py emoji studies/emoji --emoji emoji.parquet --held_out_vendor noto
    python scripts/study_data.py photos studies/photos --photos figures.parquet --labels_csv waste/labels.csv

`scenes` are drawn; `emoji` reads a parquet file with the columns key, png, name, keywords, vendor; `photos`
one with the columns key, jpg, txt and, where it is there, kind (only pictures are taken) and book.

    study.json                       what is here; scripts/compare_methods.py reads it
    train.parquet eval.parquet       columns key, image (bytes), caption; both clean: noise is a flag of a run
    images/                          the images of eval.parquet, as files
    sets/<name>/                     labels.csv and classes.json: a set for --eval_sets
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from study_sources import EMOJI_VENDOR, Study, emoji, photos, scenes
from study_writer import write_study

from ncu_hf.checkpoint import write_atomically
from ncu_hf.cli import run_main, script_parser
from ncu_hf.errors import InputError

KINDS = ("scenes", "emoji", "photos")
HELD_OUT_BY = ("key", "book")


def parse() -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("kind", choices=KINDS, help="what the study is made of")
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write; must be new")
    parser.add_argument("--train_scenes", type=int, default=6000, help="of scenes: pairs to train on")
    parser.add_argument("--eval_scenes", type=int, default=1000, help="of scenes: clean pairs to measure on")
    parser.add_argument("--size", type=int, default=64, help="of scenes: width and height in pixels")
    parser.add_argument("--scene_seed", type=int, default=0, help="of scenes: seed of the drawings")
    parser.add_argument("--emoji", type=Path, metavar="FILE", help="of emoji: parquet file")
    parser.add_argument("--held_out_vendor", default=EMOJI_VENDOR, help="of emoji: whose drawings are measured on")
    parser.add_argument("--photos", type=Path, metavar="FILE", help="of photos: parquet file")
    parser.add_argument("--held_out_share", type=float, default=0.2, help="of photos: share to measure on")
    parser.add_argument("--held_out_by", choices=HELD_OUT_BY, default="key", help="of photos: single ones or books")
    parser.add_argument("--labels_csv", type=Path, metavar="FILE", help="of photos: a labelled set")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.folder.exists():
        raise InputError(f"{arguments.folder} exists; give a new folder.")
    study = make(arguments)
    write_atomically(arguments.folder, partial(write_study, study))
    print(f"Written: {arguments.folder} ({len(study.train)} pairs to train on, {len(study.evaluation)} to measure on).")


def make(arguments: argparse.Namespace) -> Study:
    """Read or draw what the study holds.

    Raises:
        InputError: a file that is not named, or not what it should be; nothing to train or to measure on.
    """
    if arguments.kind == "scenes":
        return scenes(arguments.train_scenes, arguments.eval_scenes, arguments.size, arguments.scene_seed)
    file = getattr(arguments, arguments.kind)
    if file is None:
        raise InputError(f"{arguments.kind}: name the parquet file with --{arguments.kind}.")
    if arguments.kind == "emoji":
        return emoji(file, arguments.held_out_vendor)
    return photos(file, arguments.held_out_share, arguments.held_out_by, arguments.labels_csv)


if __name__ == "__main__":
    run_main(main)

"""The files of a study: written once by study_data.py, read by compare_methods.py."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from study_sources import Labels, Pair, Study

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.labels_file import IMAGE, LABEL, LABELS_FILE

STUDY_FILE, TRAIN_FILE, EVAL_FILE = "study.json", "train.parquet", "eval.parquet"
IMAGES, SETS = "images", "sets"
IMAGE_COLUMN, CAPTION_COLUMN = "image", "caption"


@dataclass(frozen=True)
class StudyFiles:
    """A study on disk.

    Attributes:
        folder (`Path`): Absolute.
        description (`dict`): Content of `study.json`.
    """

    folder: Path
    description: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> StudyFiles:
        """Read what `study_data.py` wrote.

        Raises:
            InputError: nothing of it there.
        """
        path = folder / STUDY_FILE
        if not path.is_file():
            raise InputError(f"{folder}: no study ({STUDY_FILE} is missing). Write one: python scripts/study_data.py")
        return cls(Path(os.path.abspath(folder)), read_json(path))

    @property
    def pairs(self) -> int:
        """Pairs to train on."""
        return self.description["train"]["pairs"]

    def flags(self) -> dict[str, Any]:
        """Flags of a run that name the data."""
        sets = [str(self.folder / SETS / name) for name in self.description["sets"]]
        columns = self.description["columns"]
        return {
            "train_data": str(self.folder / TRAIN_FILE),
            "eval_data": str(self.folder / EVAL_FILE),
            "eval_sets": ",".join(sets) or None,
            "image_column": columns["image"],
            "caption_column": columns["caption"],
        }


def write_study(study: Study, folder: Path) -> None:
    """Write all of it to the existing folder `folder`."""
    write_pairs(folder / TRAIN_FILE, study.train)
    write_pairs(folder / EVAL_FILE, study.evaluation)
    if any(labels.images is None for labels in study.sets.values()):
        files = write_images(folder / IMAGES, study.evaluation)
    for name, labels in study.sets.items():
        own = labels.images is not None
        write_set(
            folder / SETS / name, labels, None if own else [files[row] for row in labels.rows or range(len(files))]
        )
    description = {
        "source": study.source,
        "columns": {"image": IMAGE_COLUMN, "caption": CAPTION_COLUMN},
        "train": {"pairs": len(study.train), "captions": len({pair.caption for pair in study.train})},
        "eval": {"pairs": len(study.evaluation), "captions": len({pair.caption for pair in study.evaluation})},
        "sets": {
            name: {"images": len(labels.labels), "classes": len(labels.classes), "templates": labels.templates}
            for name, labels in study.sets.items()
        },
    }
    write_json(folder / STUDY_FILE, description)


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    columns = {
        "key": [pair.key for pair in pairs],
        IMAGE_COLUMN: [pair.image for pair in pairs],
        CAPTION_COLUMN: [pair.caption for pair in pairs],
    }
    pq.write_table(pa.table(columns), path)


def write_images(folder: Path, pairs: list[Pair]) -> list[Path]:
    """Files of images, in order; named by number, since a key may be anything."""
    folder.mkdir()
    files = []
    for number, pair in enumerate(pairs):
        with Image.open(io.BytesIO(pair.image)) as image:
            files.append(folder / f"{number:06d}.{(image.format or 'png').lower()}")
        files[-1].write_bytes(pair.image)
    return files


def write_set(folder: Path, labels: Labels, files: list[Path] | None) -> None:
    """`labels.csv` and `classes.json`; images of its own are copied.

    Args:
        folder (`Path`): Of the set; made.
        labels (`Labels`): What it holds.
        files (`list[Path]`, *optional*): Its images, where it has none of its own.
    """
    folder.mkdir(parents=True)
    if files is None:
        files = [folder / IMAGES / f"{number:06d}{path.suffix}" for number, path in enumerate(labels.images)]
        (folder / IMAGES).mkdir()
        for source, target in zip(labels.images, files, strict=True):
            shutil.copyfile(source, target)
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((IMAGE, LABEL))
        places = (os.path.relpath(path, folder) for path in files)
        writer.writerows(zip(places, labels.labels, strict=True))
    write_json(folder / "classes.json", {"classes": labels.classes, "templates": labels.templates})

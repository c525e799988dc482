"""A labelled set on this machine: `labels.csv` with class names beside it, as the released code reads it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

from ncu_hf.data.files import fingerprint_text
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.base import LabelledSet, Origin
from ncu_hf.evaluation.sets.class_names import ClassNames, read_class_file
from ncu_hf.evaluation.sets.images import file_state, stamp_files
from ncu_hf.evaluation.sets.labels_file import DEFAULT_SPLIT, LABELS_FILE, LabelsFile

TRAIN, VALIDATION = "train", ("validation", "val", "valid", "dev")
# What is evaluated on: the first of these that has rows.
TESTED = (DEFAULT_SPLIT, *VALIDATION)


def find_labels(folder: Path) -> Path | None:
    """`labels.csv` of a folder, or of its folder `test` (or `validation`); `None` if there is none."""
    folders = [folder, *(folder / split for split in TESTED)]
    return next((place / LABELS_FILE for place in folders if (place / LABELS_FILE).is_file()), None)


def open_labelled_folder(path: Path, name: str | None = None) -> LabelledSet:
    """Open a labelled set.

    The file has a header and the columns `image` (path, relative to the folder of the file), `label` (index into the
    classes from 0, or names of classes) and, where it holds several splits, `split`. `classes.json` or `classes.py`
    lies beside it. For a probe, the training split is the rows of the splits `train` and `validation`; where the file
    lies in a folder `test`, it is `labels.csv` of the folder `train` beside that.

    Args:
        path (`Path`): The csv file.
        name (`str`, *optional*): By default that of the folder.

    Raises:
        InputError: a column, a class or every image is missing, a label is no class, ...
    """
    names = read_class_file(path.parent)
    file = LabelsFile.read(path)
    split = next((split for split in TESTED if split in file.rows), None)
    if split is None:
        found = ", ".join(map(repr, file.rows))
        raise InputError(f"{path}: no row of the split {DEFAULT_SPLIT!r} or {VALIDATION[0]!r}. Splits: {found}.")
    name = name or _name(path.parent)
    beside = path.parent.parent / TRAIN / LABELS_FILE
    train = None
    if learnt := [other for other in (TRAIN, *VALIDATION) if other in file.rows and other != split]:
        train = functools.partial(_open_train, path, learnt, names, name)
    elif path.parent.name in TESTED and beside.is_file():
        train = functools.partial(_open_train, beside, None, names, name)
    return _labelled_set(file, [split], names, name, split, train)


def _open_train(path: Path, splits: list[str] | None, names: ClassNames, name: str) -> LabelledSet:
    """Rows of `splits`, or all of the file."""
    file = LabelsFile.read(path)
    return _labelled_set(file, splits or list(file.rows), names, name, TRAIN)


def _labelled_set(
    file: LabelsFile,
    splits: list[str],
    names: ClassNames,
    name: str,
    split: str,
    train: Callable[[], LabelledSet] | None = None,
) -> LabelledSet:
    labels, skipped = file.labels(splits, names.classes)
    paths = [os.path.join(file.path.parent, image) for image in labels]
    sizes = [file_state(path)[0] for path in paths]
    if max(sizes, default=-1) < 0:
        first = f"; the first is {paths[0]}" if paths else f" (skipped: {skipped or 'none'})"
        raise InputError(f"{file.path}: none of its {len(paths)} images exists{first}. Paths are relative to the file.")
    # An absolute path is another one on another machine.
    shown = [os.path.basename(image) if os.path.isabs(image) else image for image in labels]
    rows = zip(shown, sizes, labels.values(), strict=True)
    origin = Origin(
        name=name,
        fingerprint=fingerprint_text(*(str(part) for row in rows for part in row)),
        stamp=stamp_files(paths),
        split=split,
        note=names.note,
    )
    return LabelledSet(
        origin=origin,
        images=paths,
        labels=torch.tensor(list(labels.values()), dtype=torch.long),
        classes=names.classes,
        templates=names.templates,
        train=train,
        skipped=skipped,
    )


def _name(folder: Path) -> str:
    """Name of a folder, or of the one above if it is that of a split."""
    folder = folder.absolute()
    return folder.parent.name if folder.name in TESTED else folder.name

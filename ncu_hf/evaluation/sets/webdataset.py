"""Sets in the layout of `clip-benchmark/wds_*`, in a folder or on the Hub.

```
classnames.txt                          one class a line         } of a labelled set
zeroshot_classification_templates.txt   one template a line      }
dataset_type.txt                        "retrieval"                of a captioned set
test/0.tar test/1.tar ...               members: an image, and .cls (index of its class) or .txt (a caption a line)
test/nshards.txt                        number of tars
train/...                               the same, where there is a training split
```
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ncu_hf.data import BadRecord
from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.shards.tar_samples import DEFAULT_IMAGE
from ncu_hf.data.sources.archives import TarSource
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.base import CaptionedSet, EvaluationSet, LabelledSet, Origin
from ncu_hf.evaluation.sets.captioned import Pairing
from ncu_hf.evaluation.sets.class_names import NAMES_FILE, TEMPLATES_FILE, read_class_lines, read_text
from ncu_hf.evaluation.sets.images import SourceImages, stamp_files
from ncu_hf.evaluation.sets.labels_file import check_range
from ncu_hf.evaluation.sets.snapshots import fetch

TEST, TRAIN = "test", "train"
TYPE_FILE, COUNT_FILE = "dataset_type.txt", "nshards.txt"
RETRIEVAL, MULTILABEL = "retrieval", "multilabel"
_INTEGER = re.compile(r"\d{1,18}")
# Of the captions of one image: five are some 300 bytes.
_MAX_CAPTIONS_BYTES = 2**20


@dataclass(frozen=True)
class Place:
    """Where the files of a set are.

    Args:
        folder (`Path`): On this machine.
        name (`str`): Of the set.
        hub_id, revision (`str`, *optional*): Data set and commit on the Hub, from where missing files come.
    """

    folder: Path
    name: str
    hub_id: str | None = None
    revision: str | None = None

    @classmethod
    def on_hub(cls, hub_id: str, revision: str | None, name: str) -> Place:
        """A data set on the Hub. Only the small files that describe it are downloaded.

        Raises:
            InputError: the Hub does not give it, or it has another layout.
        """
        folder = fetch(hub_id, [NAMES_FILE, TEMPLATES_FILE, TYPE_FILE, f"*/{COUNT_FILE}"], revision)
        if not is_webdataset(folder):
            raise InputError(f"{hub_id}: not in the layout of clip-benchmark (no {NAMES_FILE}, no {TYPE_FILE}).")
        return cls(folder, name, hub_id, folder.name)

    def has(self, split: str) -> bool:
        """Whether there is a split of that name."""
        return (self.folder / split / COUNT_FILE).is_file() or any((self.folder / split).glob("*.tar"))

    def tars(self, split: str) -> list[Path]:
        """Tars of a split, in the order of their numbers; from the Hub, if they are not here.

        Raises:
            InputError: there is none, or not as many as there should be.
        """
        if self.hub_id is not None:
            fetch(self.hub_id, [f"{split}/*.tar", f"{split}/{COUNT_FILE}"], self.revision)
        folder = self.folder / split
        paths = sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))
        if not paths:
            raise InputError(f"{self.hub_id or self.folder}: no tar in the folder {split!r}.")
        promised = read_text(folder / COUNT_FILE).strip() if (folder / COUNT_FILE).is_file() else str(len(paths))
        if promised != str(len(paths)):
            raise InputError(f"{folder}: {len(paths)} tars, but {COUNT_FILE} says {promised:.20}. Fetch them again.")
        return paths

    def origin(self, split: str, paths: list[Path], rows: list[int], fingerprint: str, note: str | None) -> Origin:
        """Origin of those samples (`rows`) of a split that are used."""
        # The commit stands for the content; files of the cache are as new as their download.
        stamp = stamp_files(paths) if self.hub_id is None else fingerprint_text(self.hub_id, self.revision, split)
        return Origin(
            name=self.name,
            fingerprint=fingerprint,
            stamp=fingerprint_text(stamp, *map(str, rows)),
            hub_id=self.hub_id,
            revision=self.revision,
            split=split,
            note=note,
        )


def is_webdataset(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return any((folder / name).is_file() for name in (NAMES_FILE, TYPE_FILE)) or any((folder / TEST).glob("*.tar"))


def open_webdataset(place: Place, captions_per_image: int | None = None) -> EvaluationSet:
    """Open the split `test`.

    Args:
        place (`Place`): Where it is.
        captions_per_image (`int`, *optional*): So many captions of each image are kept, by default all.

    Raises:
        InputError: files are missing, samples without label or captions, a label is no class, ...
    """
    kind = read_text(place.folder / TYPE_FILE).strip().lower() if (place.folder / TYPE_FILE).is_file() else None
    if kind == MULTILABEL:
        raise InputError(f"{place.name}: images of several classes each are not supported.")
    if kind == RETRIEVAL:
        return _captioned(place, captions_per_image)
    if kind is None and not (place.folder / NAMES_FILE).is_file():
        try:
            return _captioned(place, captions_per_image)
        except InputError as error:
            raise InputError(f"Neither {NAMES_FILE} of a labelled set nor captions: {error}") from error
    train = functools.partial(_labelled, place, TRAIN) if place.has(TRAIN) else None
    return _labelled(place, TEST, train)


def _labelled(place: Place, split: str, train: Callable[[], LabelledSet] | None = None) -> LabelledSet:
    names = read_class_lines(place.folder)
    source, paths = _read(place, split, "cls")
    rows, labels, skipped = [], [], Counter(problem.reason for problem in source.problems)
    for row, stored in enumerate(source.captions()):
        try:
            labels.append(_label(stored))
            rows.append(row)
        except BadRecord as error:
            skipped[error.reason] += 1
    check_range(labels, len(names.classes), lambda number: f"{place.name}, sample {source.key_at(rows[number])!r}")
    if not labels:
        raise InputError(f"{place.name}: none of its {len(source)} samples has a label ({dict(skipped)}).")
    fingerprint = fingerprint_text(source.fingerprint, *map(source.key_at, rows), *map(str, labels))
    return LabelledSet(
        origin=place.origin(split, paths, rows, fingerprint, names.note),
        images=SourceImages(source, rows),
        labels=torch.tensor(labels, dtype=torch.long),
        classes=names.classes,
        templates=names.templates,
        train=train,
        skipped=dict(skipped),
    )


def _label(stored: Any) -> int:
    """Index of a class as it is stored: text of a member, or a field of its JSON."""
    if stored is None:
        raise BadRecord("missing_label")
    text = stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
    if not _INTEGER.fullmatch(text.strip()):
        raise BadRecord("bad_label")
    return int(text)


def _captioned(place: Place, captions_per_image: int | None) -> CaptionedSet:
    """Each image matches its own captions only, as papers count it, even if another image has an equal one."""
    source, paths = _read(place, TEST, "txt", _MAX_CAPTIONS_BYTES + 1)
    pairing = Pairing(captions_per_image)
    for row, stored in enumerate(source.captions()):
        if isinstance(stored, bytes) and len(stored) > _MAX_CAPTIONS_BYTES:
            pairing.skipped["captions_too_long"] += 1
        elif captions := pairing.clean(_captions(stored)):
            pairing.add_captions(pairing.add_image(source.key_at(row), row), captions)
    note = f"the first {captions_per_image} captions of each image" if captions_per_image else None
    fingerprint = pairing.fingerprint(source.fingerprint, *pairing.keys)
    groups = torch.arange(len(pairing.rows))
    return pairing.to_set(source, place.origin(TEST, paths, pairing.rows, fingerprint, note), groups)


def _captions(stored: Any) -> Any:
    """Captions of a member: one a line; blank lines do not count."""
    lines = stored.splitlines() if isinstance(stored, bytes) else None
    return stored if lines is None else [line for line in lines if line.strip()] or None


def _read(place: Place, split: str, member: str, *limits: int) -> tuple[TarSource, list[Path]]:
    paths = place.tars(split)
    try:
        return TarSource(paths, place.name, DEFAULT_IMAGE, member, *limits), paths
    except InputError as error:
        raise InputError(f"{place.name}: members .{member} are read, but {error}") from error

"""Small sets in the formats that people have them in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

CLASSES, TEMPLATES = ["cat", "dog", "hot dog"], ["a photo of a {c}.", "{c}"]


@pytest.fixture
def classes() -> list[str]:
    return list(CLASSES)


@pytest.fixture
def make_wds(png: Callable[..., bytes], write_tar: Callable) -> Callable[..., Path]:
    """Write a folder in the layout of `clip-benchmark`: `make_wds(folder, test=[[0, 1], [2]])`.

    `test` and `train` hold a list of labels (or of captions of an image, for `retrieval`) a tar. Labels and captions
    are written as they are given; `None` leaves the member out. Image i of a split is `png(i)`.
    """

    def write(folder: Path, *, retrieval: bool = False, templates: Sequence[str] = TEMPLATES, **splits) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if retrieval:
            (folder / "dataset_type.txt").write_text("retrieval\n")
        else:
            (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
            (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
        for split, tars in splits.items():
            (folder / split).mkdir()
            (folder / split / "nshards.txt").write_text(f"{len(tars)}\n")
            count = 0
            for number, contents in enumerate(tars):
                members = []
                for content in contents:
                    members.append((f"s{count:07d}.{('webp', 'jpg', 'png')[count % 3]}", png(count)))
                    if content is not None:
                        members.append((f"s{count:07d}.{'txt' if retrieval else 'cls'}", str(content).encode()))
                    count += 1
                write_tar(folder / split / f"{number}.tar", members)
        return folder

    return write


@pytest.fixture
def make_labelled(png: Callable[..., bytes]) -> Callable[..., Path]:
    """Write a folder with `labels.csv` and `classes.json`: `make_labelled(folder, "image,label\\n0.png,1\\n")`.

    The images `0.png` to `7.png` are there.
    """

    def write(folder: Path, labels: str | bytes, names: object = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(8):
            (folder / f"{number}.png").write_bytes(png(number))
        data = labels if isinstance(labels, bytes) else labels.encode()
        (folder / "labels.csv").write_bytes(data)
        names = {"classes": CLASSES, "templates": TEMPLATES} if names is None else names
        if isinstance(names, str):
            (folder / "classes.py").write_text(names)
        else:
            (folder / "classes.json").write_text(json.dumps(names))
        return folder

    return write

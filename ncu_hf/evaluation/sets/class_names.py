"""Class names and templates of a labelled set, and the files that hold them: JSON, one name a line, or `classes.py`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ncu_hf.data.files import unreadable
from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.classes_file import parse_classes
from ncu_hf.evaluation.zero_shot import FIELD, class_texts

logger = logging.getLogger(__name__)

JSON_FILE, PYTHON_FILE = "classes.json", "classes.py"
NAMES_FILE, TEMPLATES_FILE = "classnames.txt", "zeroshot_classification_templates.txt"
# 21,000 classes of ImageNet are 0.4 MB; `ast` needs some 500 bytes of memory a byte of hostile text.
_MAX_BYTES = 2**20


class ClassNames(NamedTuple):
    """What a zero-shot classifier is made of.

    Attributes:
        classes (`list[str]`): C names.
        templates (`list[str]`): Texts with the field `{c}`.
        note (`str`, *optional*): What a reader of the number must know, e.g. that a name stands for two classes.
    """

    classes: list[str]
    templates: list[str]
    note: str | None


def read_class_file(folder: Path) -> ClassNames:
    """Class names of a folder with `classes.json` or the released `classes.py`.

    Raises:
        InputError: neither or both are there, or what they hold cannot be used.
    """
    files = [folder / name for name in (JSON_FILE, PYTHON_FILE) if (folder / name).is_file()]
    if len(files) != 1:
        found = "both exist" if files else "neither exists"
        raise InputError(f"{folder}: class names come from {JSON_FILE} or {PYTHON_FILE}, but {found}. Keep one.")
    text = read_text(files[0])
    content = parse_classes(text, str(files[0])) if files[0].name == PYTHON_FILE else _json_object(text, files[0])
    missing = [key for key in ("classes", "templates") if key not in content]
    if missing:
        raise InputError(f"{files[0]}: no {missing[0]!r}, which must be a list of texts.")
    return checked(str(files[0]), content["classes"], content["templates"])


def read_class_lines(folder: Path) -> ClassNames:
    """Class names of a folder in the layout of `clip-benchmark`: one name, and one template, a line."""
    names, templates = folder / NAMES_FILE, folder / TEMPLATES_FILE
    return checked(str(names), list(_lines(names)), list(_lines(templates)))


def checked(where: str, classes: Any, templates: Any) -> ClassNames:
    """Check class names and templates.

    The field of a template may also be written `{}`. Two classes of one name are allowed, since the names that are
    used for ImageNet have such: no model can tell them apart, which is warned of and noted.

    Raises:
        InputError: not lists of texts, an empty name, a template without field, none at all.
    """
    _check_texts(where, "classes", classes)
    _check_texts(where, "templates", templates)
    templates = [text if FIELD in text else text.replace("{}", FIELD) for text in templates]
    try:
        class_texts(classes, templates)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    doubled = [name for name, count in Counter(classes).items() if count > 1]
    if not doubled:
        return ClassNames(list(classes), templates, None)
    shown = ", ".join(repr(name) for name in doubled[:5]) + (", ..." if len(doubled) > 5 else "")
    logger.warning("%s: no model can tell classes of one name apart: %s.", where, shown)
    return ClassNames(list(classes), templates, f"names of several classes: {shown}")


def read_text(path: Path, limit: int = _MAX_BYTES) -> str:
    """A UTF-8 file of at most `limit` bytes, with or without byte order mark."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit:,} bytes; it should hold a list of names only.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}). Convert it.") from error


def _check_texts(where: str, what: str, texts: Any) -> None:
    if not isinstance(texts, list):
        raise InputError(f"{where}: {what!r} must be a list of texts, not {type(texts).__name__}.")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: number {number} of {what!r} is not a text, or empty: {text!r:.80}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone surrogate, which cannot be tokenised
            raise InputError(f"{where}: number {number} of {what!r} is not Unicode text: {text!r:.80}.") from error


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: must hold one JSON object, {{"classes": [...], "templates": [...]}}.')
    return content


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; blank ones at the end of the file do not count."""
    for line in read_text(path).rstrip("\r\n").split("\n"):
        yield line.removesuffix("\r")

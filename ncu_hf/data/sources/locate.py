"""What a specification names: files here, files behind URLs, or a data set of the Hub, and in which format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ncu_hf.data.files import expand
from ncu_hf.data.shards.tar_samples import IMAGE_EXTENSIONS
from ncu_hf.data.sources.folders import METADATA_FILES
from ncu_hf.data.sources.registry import KNOWN_SETS, KnownSet, known_set
from ncu_hf.errors import InputError, nearest, one_of

FORMATS = ("csv", "parquet", "webdataset", "folder", "hub")
_SUFFIXES = {
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "webdataset": (".tar",),
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_URL = re.compile(r"https?://", re.IGNORECASE)


class Named(NamedTuple):
    """What a specification stands for once the names of known sets are looked up.

    Attributes:
        spec (`str`): Path, URL or Hub id.
        data_format (`str`, *optional*): As given, or `hub` for a known set.
        streaming (`bool`): Whether files and Hub data are read forwards; URLs always are.
        known (`KnownSet`, *optional*): The set, if `spec` was the name of one.
    """

    spec: str
    data_format: str | None
    streaming: bool
    known: KnownSet | None


def resolve(spec: str, data_format: str | None, streaming: bool | None) -> Named:
    """Look up the name of a known set, and decide whether the data are streamed.

    Raises:
        InputError: a known set in another format than `hub`.
    """
    known = known_set(spec)
    if known is None:
        return Named(spec, data_format, bool(streaming) or is_url(spec), None)
    if data_format not in (None, "hub"):
        raise InputError(f"{spec} is read from the Hub ({known.repo}); leave --data_format {data_format} out.")
    return Named(known.repo, "hub", streaming is None or streaming, known)


def is_url(spec: str) -> bool:
    """Whether a specification names files behind http(s)."""
    return _URL.match(spec) is not None


def locate(spec: str, data_format: str | None) -> tuple[str, list[Path]]:
    """Format and files of a specification that is not a URL; no files for a Hub id.

    Raises:
        InputError: nothing there, several formats, a mix of files and folders, an unknown format.
    """
    if data_format is not None:
        one_of("--data_format", data_format, FORMATS)
    paths = [] if data_format == "hub" else expand(spec)
    if not paths:
        if data_format == "hub" or (data_format is None and _HUB_ID.fullmatch(spec) and not _is_file_name(spec)):
            return "hub", []
        raise InputError(f"{spec!r}: no such file or folder{_nearest_existing(spec)}.{_nearest_known(spec)}")
    kind = data_format or _guess(spec, paths)
    if kind != "folder" and all(path.is_dir() for path in paths):
        paths = sorted(file for path in paths for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES[kind])
        if not paths:
            raise InputError(f"{spec}: no {' or '.join(_SUFFIXES[kind])} file in this folder.")
    folders = [path for path in paths if path.is_dir()]
    if kind == "folder" and len(folders) != len(paths):
        raise InputError(f"{spec}: is not a folder, as --data_format folder needs.")
    if kind != "folder" and folders:
        raise InputError(f"{spec}: names both files and folders, e.g. {folders[0]}. Make the pattern narrower.")
    return kind, paths


def format_of_names(names: Sequence[str]) -> str | None:
    """`webdataset` or `parquet` if all names (paths or URLs) end like its files, else `None`."""
    endings = {os.path.splitext(urlsplit(name).path if is_url(name) else name)[1].lower() for name in names}
    return next((kind for kind in ("webdataset", "parquet") if endings and endings <= set(_SUFFIXES[kind])), None)


def single(spec: str, paths: list[Path]) -> Path:
    """The only path, of a format that takes one."""
    if len(paths) != 1:
        raise InputError(f"{spec}: names {len(paths)} files, this format takes one.")
    return paths[0]


def _is_file_name(spec: str) -> bool:
    return spec.lower().endswith(tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))


def _nearest_existing(spec: str) -> str:
    """Which part of a path is there: the most frequent mistake is a wrong working folder."""
    parent = Path(os.path.expanduser(spec)).absolute().parent
    while not parent.exists():
        parent = parent.parent
    return f" ({parent} exists)"


def _nearest_known(spec: str) -> str:
    return "" if "/" in spec else nearest(spec.lower(), KNOWN_SETS)


def _guess(spec: str, paths: list[Path]) -> str:
    """Format by the endings of the files, or of what a folder holds."""
    kinds = {kind for path in paths for kind in _kinds_in(path)}
    if len(kinds) != 1:
        found = f"holds several formats ({', '.join(sorted(kinds))})" if kinds else "is of no known format"
        raise InputError(f"{spec}: {found}. Say which with --data_format ({', '.join(FORMATS)}).")
    return kinds.pop()


def _kinds_in(path: Path) -> set[str]:
    if path.is_file():
        return {kind for kind, suffixes in _SUFFIXES.items() if path.suffix.lower() in suffixes}
    if any((path / name).is_file() for name in METADATA_FILES):
        return {"folder"}
    # Two levels are enough to tell: folder/file and folder/split/file.
    entries = [entry for pattern in ("*", "*/*") for entry in path.glob(pattern) if entry.is_file()]
    suffixes = {entry.suffix.lower() for entry in entries}
    kinds = {kind for kind, endings in _SUFFIXES.items() if suffixes & set(endings)}
    if not kinds and suffixes & {f".{extension}" for extension in IMAGE_EXTENSIONS}:
        kinds = {"folder"}
    return kinds

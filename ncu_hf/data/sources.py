"""What the user names -> records. `open_pairs` is the one way in; one module a kind of storage does the reading."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ncu_hf.data.archives import DEFAULT_CAPTION, DEFAULT_IMAGE, IMAGE_EXTENSIONS, TarSource
from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.files import expand, fingerprint_text
from ncu_hf.data.folders import METADATA_FILES, FolderSource
from ncu_hf.data.noise import shuffle_captions
from ncu_hf.data.records import BadRecord, PairSource, Record
from ncu_hf.data.streaming import StreamSource, stream_hub, stream_parquet
from ncu_hf.data.tables import TableSource, open_csv, open_hub, open_parquet
from ncu_hf.data.token_captions import caption_decoder
from ncu_hf.errors import InputError, one_of

FORMATS = ("csv", "parquet", "webdataset", "folder", "hub")
_SUFFIXES = {
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "webdataset": (".tar",),
}
AnySource = TypeVar("AnySource", PairSource, StreamSource)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def open_pairs(
    spec: str,
    *,
    image_column: str = DEFAULT_IMAGE,
    caption_column: str = DEFAULT_CAPTION,
    delimiter: str = ",",
    split: str = "train",
    image_root: str | Path | None = None,
    revision: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    noise_share: float = 0.0,
    noise_seed: int = 0,
    streaming: bool = False,
    caption_tokenizer: str | None = None,
) -> PairSource | StreamSource:
    """Open image-text pairs.

    Args:
        spec (`str`): A csv file; a parquet file, a folder or a glob of them; WebDataset tars (file, glob, brace
            pattern `{0000..0131}`, folder); a folder of images ([`FolderSource`] says where captions come from);
            or the id of a data set on the Hub.
        image_column (`str`, *optional*, defaults to `"image_path"`): Column with a path, encoded bytes, or a struct
            of both. WebDataset: extension of the image member.
        caption_column (`str`, *optional*, defaults to `"text_content"`): Column with the caption. WebDataset:
            extension of the caption member or field of the `.json` member; by default `txt`.
        delimiter (`str`, *optional*, defaults to `","`): Of csv; `"\\t"` may be written as backslash and t.
        split (`str`, *optional*, defaults to `"train"`): Of a Hub data set.
        image_root (`str`, *optional*): Folder of relative image paths; by default the folder of the file.
        revision (`str`, *optional*): Branch, tag or commit of a Hub data set. The commit is recorded.
        data_format (`str`, *optional*): `csv`, `parquet`, `webdataset`, `folder` or `hub`; guessed by default.
        limit (`int`, *optional*): Take the first records only.
        noise_share (`float`, *optional*, defaults to 0): Shuffle the captions of this share of the pairs
            ([`shuffle_captions`]); records then carry `mismatched`.
        noise_seed (`int`, *optional*, defaults to 0): Seed of that choice.
        streaming (`bool`, *optional*, defaults to `False`): Read parquet and Hub data in order, without a local copy
            and without knowing their length. Other formats are read in place anyway.
        caption_tokenizer (`str`, *optional*): Folder or Hub id of the tokenizer with whose ids the captions of a table
            are stored, as in YFCC15M-R.

    Returns:
        `PairSource` or, for streams, `StreamSource`.

    Raises:
        InputError: nothing there, no such column, empty data, broken csv, a Hub id that does not exist, ...
    """
    root = Path(image_root) if image_root is not None else None
    kind, paths = _locate(spec, data_format)
    name = Path(spec).name or spec
    if streaming and kind in ("hub", "parquet"):
        if limit is not None or noise_share:
            raise InputError("--train_limit and --noise_share need data of known length: use them without streaming.")
        if kind == "hub":
            stream = stream_hub(spec, split, revision, image_column, caption_column, root)
        else:
            stream = stream_parquet(paths, name, image_column, caption_column, root)
        return _with_decoded_captions(stream, caption_tokenizer)
    if kind == "csv":
        source: PairSource = open_csv(_single(spec, paths), image_column, caption_column, _unescape(delimiter), root)
    elif kind == "parquet":
        source = open_parquet(paths, name, image_column, caption_column, root)
    elif kind == "webdataset":
        source = TarSource(paths, name, image_column, caption_column)
    elif kind == "folder":
        source = FolderSource(_single(spec, paths), image_column, caption_column)
    else:
        source = open_hub(spec, split, revision, image_column, caption_column, root)
    source = _with_decoded_captions(source, caption_tokenizer)
    if limit is not None:
        source = _FirstRecords(source, limit)
    return _ShuffledCaptions(source, noise_share, noise_seed) if noise_share else source


def _with_decoded_captions(source: AnySource, caption_tokenizer: str | None) -> AnySource:
    if caption_tokenizer is not None:
        if not isinstance(source, TableSource | StreamSource):
            raise InputError(
                f"--caption_tokenizer: {source.name} ({source.format}) holds captions as text, not as ids."
            )
        source.decode_captions(caption_decoder(caption_tokenizer))
    return source


def _unescape(delimiter: str) -> str:
    r"""A tab is hard to type in a shell: accept `\t`."""
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"--delimiter: {delimiter!r} is not a single character. Typical: ',' or '\\t' or ';'.")
    return delimiter


def _single(spec: str, paths: list[Path]) -> Path:
    if len(paths) != 1:
        raise InputError(f"{spec}: names {len(paths)} files, this format takes one.")
    return paths[0]


def _locate(spec: str, data_format: str | None) -> tuple[str, list[Path]]:
    """Format and files of a specification; no files for a Hub id."""
    if data_format is not None:
        one_of("--data_format", data_format, FORMATS)
    paths = [] if data_format == "hub" else expand(spec)
    if not paths:
        if data_format == "hub" or (data_format is None and _HUB_ID.fullmatch(spec) and not _is_file_name(spec)):
            return "hub", []
        raise InputError(f"{spec!r}: no such file or folder{_nearest_existing(spec)}.")
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


def _is_file_name(spec: str) -> bool:
    return spec.lower().endswith(tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))


def _nearest_existing(spec: str) -> str:
    """Which part of a path is there: the most frequent mistake is a wrong working folder."""
    parent = Path(os.path.expanduser(spec)).absolute().parent
    while not parent.exists():
        parent = parent.parent
    return f" ({parent} exists)"


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


class _FirstRecords(PairSource):
    """The first `limit` records of a source."""

    def __init__(self, source: PairSource, limit: int):
        if limit < 1:
            raise InputError(f"limit: {limit} records make no data. Give at least 1.")
        self._source, self._rows = source, min(limit, len(source))
        self.name, self.format, self.revision, self.problems = _shared(source)
        self.fingerprint = fingerprint_text(source.fingerprint, "first", str(self._rows))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def shard_of(self, index: int) -> str:
        return self._source.shard_of(index)

    def captions(self) -> list[Any]:
        return self._source.captions()[: self._rows]


class _ShuffledCaptions(PairSource):
    """A source with the captions of a known share shuffled. Records without a usable caption take no part."""

    def __init__(self, source: PairSource, share: float, seed: int):
        self._source = source
        captions = source.captions()
        usable = [i for i, caption in enumerate(captions) if _is_usable(caption)]
        shuffled, mismatched = shuffle_captions([clean_caption(captions[i]) for i in usable], share, seed)
        self._captions = dict(zip(usable, zip(shuffled, mismatched.tolist(), strict=True), strict=True))
        self.name, self.format, self.revision, self.problems = _shared(source)
        self.fingerprint = fingerprint_text(source.fingerprint, "noise", str(share), str(seed))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        caption, mismatched = self._captions.get(index, (record.caption, False))
        return Record(record.key, record.image, caption, mismatched or bool(record.mismatched))

    def shard_of(self, index: int) -> str:
        return self._source.shard_of(index)


def _shared(source: PairSource) -> tuple[Any, ...]:
    return source.name, source.format, source.revision, source.problems


def _is_usable(caption: Any) -> bool:
    return _fault(clean_caption, caption) is None


def usable_captions(source: PairSource | StreamSource) -> list[str]:
    """All captions of a source as training sees them, without those that it skips.

    Raises:
        InputError: the source is a stream.
    """
    return [clean_caption(caption) for caption in source.captions() if _is_usable(caption)]


def check_readable(source: PairSource | StreamSource, rows: int = 100) -> None:
    """Stop before training if the first rows hold no usable pair: a wrong folder, a wrong column.

    Raises:
        InputError: says what is wrong with the first row.
    """
    image_fault = caption_fault = None
    count = 0
    for record in _first_records(source, rows):
        count += 1
        fault = _fault(decode_image, record.image)
        image_fault = image_fault or (fault and f"{fault}: {_show(record)}")
        caption = _fault(clean_caption, record.caption)
        caption_fault = caption_fault or (caption and f"{caption}: {record.key!r}")
        if fault is None and caption is None:
            return
    if not count:
        raise InputError(f"{source.name}: the data is empty.")
    what, first = ("image", image_fault) if image_fault else ("caption", caption_fault)
    raise InputError(
        f"{source.name}: no readable {what} in the first {count} rows (first: {first}). "
        f"Check --image_column, --caption_column and --image_root."
    )


def _first_records(source: PairSource | StreamSource, rows: int) -> Iterator[Record]:
    if isinstance(source, StreamSource):
        return islice((r for i in range(len(source.shards)) for r in source.read_shard(i)), rows)
    return (source[i] for i in range(min(rows, len(source))))


def _fault(check: Callable[[Any], Any], value: Any) -> str | None:
    try:
        check(value)
    except BadRecord as error:
        return error.reason
    return None


def _show(record: Record) -> str:
    return repr(record.image) if isinstance(record.image, str) else repr(record.key)

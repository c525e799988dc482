"""What the user names -> records. `open_pairs` is the one way in; one module a kind of storage does the reading."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ncu_hf.data.decoding import clean_caption, decode_image
from ncu_hf.data.noise import Noise
from ncu_hf.data.records import BadRecord, PairSource, Record, Skipped
from ncu_hf.data.shards.base import BEGINNING, Shard, StoredRow
from ncu_hf.data.shards.tar_samples import DEFAULT_CAPTION, DEFAULT_IMAGE, json_fields
from ncu_hf.data.shards.tar_shards import TarShard
from ncu_hf.data.sources.archives import TarSource
from ncu_hf.data.sources.folders import FolderSource
from ncu_hf.data.sources.hub import open_hub
from ncu_hf.data.sources.locate import is_url, locate, resolve, single
from ncu_hf.data.sources.noisy import MatchedPairs, NoisyCaptions
from ncu_hf.data.sources.open_streams import stream_files, stream_remote
from ncu_hf.data.sources.remote import RemoteData, find_remote
from ncu_hf.data.sources.stored import Stored
from ncu_hf.data.sources.stream_source import FIRST_SHARDS, StreamSource
from ncu_hf.data.sources.subset import Subset, take_subset, take_subset_of_stream
from ncu_hf.data.sources.tables import TableSource, open_csv, open_parquet, unescape
from ncu_hf.data.sources.views import first_records, is_usable
from ncu_hf.data.token_captions import caption_decoder
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)

# What can be read forwards; csv files and folders are always indexed.
_STREAMED = ("url", "hub", "parquet", "webdataset")
# Seconds without progress after which a run that reads from the network stops.
DATA_TIMEOUT = 300.0


def open_pairs(
    spec: str,
    *,
    image_column: str = DEFAULT_IMAGE,
    caption_column: str = DEFAULT_CAPTION,
    delimiter: str = ",",
    split: str = "train",
    image_root: str | Path | None = None,
    revision: str | None = None,
    config: str | None = None,
    data_format: str | None = None,
    limit: int | None = None,
    subset: str | None = None,
    subset_seed: int = 0,
    noise_share: float = 0.0,
    noise_seed: int = 0,
    noise_kind: str = Noise.kind,
    noise_class_column: str | None = None,
    drop_mismatched: bool = False,
    streaming: bool | None = None,
    total_rows: int | None = None,
    timeout: float = DATA_TIMEOUT,
    caption_tokenizer: str | None = None,
    remote: RemoteData | None = None,
) -> PairSource | StreamSource:
    """Open image-text pairs.

    Args:
        spec (`str`): A name of [`KNOWN_SETS`]; a csv file; a parquet file, a folder or a glob of them; WebDataset
            tars (file, glob, brace pattern `{0000..0131}`, folder); http(s) URLs of tars or parquet files, with brace
            pattern; a folder of images ([`FolderSource`] says where captions come from); or the id of a data set on
            the Hub.
        image_column (`str`, *optional*, defaults to `"image_path"`): Column with a path, encoded bytes, or a struct
            of both. WebDataset: extension of the image member.
        caption_column (`str`, *optional*, defaults to `"text_content"`): Column with the caption. WebDataset:
            extension of the caption member or field of the `.json` member; by default `txt`.
        delimiter (`str`, *optional*, defaults to `","`): Of csv; `"\\t"` may be written as backslash and t.
        split (`str`, *optional*, defaults to `"train"`): Of a Hub data set.
        image_root (`str`, *optional*): Folder of relative image paths; by default the folder of the file.
        revision (`str`, *optional*): Branch, tag or commit of a Hub data set. The commit is recorded.
        config (`str`, *optional*): Configuration of a Hub data set that has several.
        data_format (`str`, *optional*): `csv`, `parquet`, `webdataset`, `folder` or `hub`; guessed by default.
        limit (`int`, *optional*): Take the first records only.
        subset (`str`, *optional*): Take a random part only: a share (`"0.5"`, `"50%"`) or a number of pairs
            (`"500000"`), see [`take_subset`] and [`take_subset_of_stream`].
        subset_seed (`int`, *optional*, defaults to 0): Seed of that choice.
        noise_share (`float`, *optional*, defaults to 0): Make the captions of this share of the pairs wrong
            ([`Noise`]); records then carry `mismatched`.
        noise_seed (`int`, *optional*, defaults to 0): Seed of that choice.
        noise_kind (`str`, *optional*, defaults to `"shuffled"`): In which way they are wrong.
        noise_class_column (`str`, *optional*): Column of a table, or field of the `.json` member, with the class of a
            pair, for the kind `hard`.
        drop_mismatched (`bool`, *optional*, defaults to `False`): Leave out the pairs that the noise made wrong.
        streaming (`bool`, *optional*): Read tars, parquet files and Hub data forwards, without an index or a local
            copy. By default known sets are; URLs always are, csv files and folders never.
        total_rows (`int`, *optional*): Rows of a stream as a whole, if the user knows better than its card.
        timeout (`float`, *optional*, defaults to 300): Seconds without progress after which a stream from the network
            stops.
        caption_tokenizer (`str`, *optional*): Folder or Hub id of the tokenizer with whose ids the captions of a table
            are stored, as in YFCC15M-R.
        remote (`RemoteData`, *optional*): Answer of [`find_remote`] for the same arguments, if another process has
            asked already.

    Returns:
        `PairSource` or, for streams, `StreamSource`.

    Raises:
        InputError: nothing there, no such column, empty data, broken csv, a Hub id that does not exist, ...
        TrainingStopped: a server does not answer.
    """
    chosen = None if subset is None else Subset.parse(subset, subset_seed)
    noise = Noise(noise_share, noise_seed, noise_kind, noise_class_column)
    root = None if image_root is None else Path(image_root)
    stored = Stored(image_column, caption_column, delimiter, root, caption_tokenizer)
    asked = {"--train_pairs": total_rows, "--data_revision": revision, "--data_config": config}
    named = resolve(spec, data_format, streaming)
    if named.known is not None:
        stored = stored.of_known(named.known)
        total_rows = named.known.train_pairs if total_rows is None and split == "train" else total_rows
    kind, paths = ("url", []) if is_url(named.spec) else locate(named.spec, named.data_format)
    name = Path(named.spec).name or named.spec
    if named.streaming and kind in _STREAMED:
        _refuse_on_streams(limit, noise_share)
        if paths:
            stream = stream_files(kind, paths, name, stored, total_rows=total_rows)
        else:
            place = {"split": split, "revision": revision, "config": config, "data_format": named.data_format}
            remote = remote or find_remote(named.spec, streaming=True, timeout=timeout, **place)
            stream = stream_remote(remote, stored, timeout=timeout, total_rows=total_rows)
        return stream if chosen is None else take_subset_of_stream(stream, chosen)
    if kind == "hub":
        del asked["--data_revision"], asked["--data_config"]
        source: PairSource = open_hub(
            named.spec, split, revision, config, *stored.names, stored.image_root, noise_class_column
        )
    else:
        source = _open_files(kind, name, paths, stored, noise_class_column)
    _tell_unused(source, {**asked, "--streaming": streaming})
    if stored.caption_tokenizer is not None:
        _decode_captions(source, stored.caption_tokenizer)
    if limit is not None:
        source = first_records(source, limit)
    if chosen is not None:
        source = take_subset(source, chosen)
    if not noise.share:
        return source
    noisy = NoisyCaptions(source, noise)
    return MatchedPairs(noisy) if drop_mismatched else noisy


def _open_files(kind: str, name: str, paths: list[Path], stored: Stored, class_column: str | None) -> PairSource:
    """Files on this machine, indexed."""
    if kind == "csv":
        delimiter = unescape(stored.delimiter)
        return open_csv(single(name, paths), *stored.names, delimiter, stored.image_root, class_column)
    if kind == "parquet":
        return open_parquet(paths, name, *stored.names, stored.image_root, class_column)
    if kind == "webdataset":
        return TarSource(paths, name, *stored.names, class_column=class_column)
    return FolderSource(single(name, paths), *stored.names, class_column)


def _tell_unused(source: PairSource, given: dict[str, Any]) -> None:
    """Warn of flags that say something about other data only."""
    if unused := [flag for flag, value in given.items() if value]:
        logger.warning("%s (%s) is indexed; not used for it: %s.", source.name, source.format, ", ".join(unused))


def _refuse_on_streams(limit: int | None, noise_share: float) -> None:
    if limit is not None:
        raise InputError("--train_limit needs data that is indexed; a stream takes --train_subset instead.")
    if noise_share:
        raise InputError("--noise_share needs data that is indexed: give a local copy, without streaming.")


def _decode_captions(source: PairSource, caption_tokenizer: str) -> None:
    if not isinstance(source, TableSource):
        raise InputError(f"--caption_tokenizer: {source.name} ({source.format}) holds captions as text, not as ids.")
    source.decode_captions(caption_decoder(caption_tokenizer))


def usable_captions(source: PairSource | StreamSource) -> list[str]:
    """All captions of a source as training sees them, without those that it skips.

    Raises:
        InputError: the source is a stream.
    """
    return [clean_caption(caption) for caption in source.captions() if is_usable(caption)]


def check_readable(source: PairSource | StreamSource, rows: int = 100) -> None:
    """Stop before training if the first rows hold no usable pair: a wrong folder, a wrong column.

    Of a stream, the beginning of one shard is read, and of the next ones if that has no rows.

    Raises:
        InputError: says what is wrong with the first row.
    """
    image_fault = caption_fault = None
    count = 0
    for record in _first_records(source, rows):
        count += 1
        fault = record.fault or _fault(decode_image, record.image)
        image_fault = image_fault or (fault and f"{fault}: {_show(record)}")
        caption = record.fault or _fault(clean_caption, record.caption)
        caption_fault = caption_fault or (caption and f"{caption}: {record.key!r}")
        if fault is None and caption is None:
            return
    if not count:
        raise InputError(f"{source.name}: the data is empty.{_first_problem(source)}")
    what, first = ("image", image_fault) if image_fault else ("caption", caption_fault)
    raise InputError(
        f"{source.name}: no readable {what} in the first {count} rows (first: {first}). "
        f"Check --image_column, --caption_column and --image_root."
    )


def _first_records(source: PairSource | StreamSource, rows: int) -> Iterator[Record]:
    if isinstance(source, PairSource):
        yield from (source[i] for i in range(min(rows, len(source))))
        return
    for shard, first, _ in source.parts[:FIRST_SHARDS]:
        empty = True
        for row in islice(_rows_of(source.shards[shard], first, source.problems), rows):
            empty = False
            yield row.record
        if not empty:
            return


def _rows_of(shard: Shard, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
    """Rows of a shard whose layout is what the user says."""
    if isinstance(shard, TarShard) and (sample := shard.first_sample()) is not None:
        shard.layout.check(shard.name, sample.members, json_fields(sample.contents.get("json")))
    return shard.read(BEGINNING, first, problems)


def _first_problem(source: PairSource | StreamSource) -> str:
    return "".join(f" {problem.shard}: {problem.reason}." for problem in source.problems[:1])


def _fault(check: Callable[[Any], Any], value: Any) -> str | None:
    try:
        check(value)
    except BadRecord as error:
        return error.reason
    return None


def _show(record: Record) -> str:
    return repr(record.image) if isinstance(record.image, str) else repr(record.key)

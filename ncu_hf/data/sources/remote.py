"""Data that is not on this machine: its files are found once, by one process, and told to the others as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from ncu_hf.data.files import expand_braces, fingerprint_text
from ncu_hf.data.network.remote_file import RemoteFile, remote_sizes
from ncu_hf.data.shards.tar_samples import TarLayout
from ncu_hf.data.shards.tar_shards import TarShard
from ncu_hf.data.sources.hub import HubSplit, find_split
from ncu_hf.data.sources.locate import format_of_names, is_url, locate, resolve
from ncu_hf.data.sources.stream_source import FIRST_SHARDS
from ncu_hf.errors import InputError, TrainingStopped, one_line


@dataclass(frozen=True)
class RemoteData:
    """What a remote data set consists of.

    Args:
        name (`str`): What the user named.
        kind (`str`): `webdataset`, `parquet`, or `table`: what only `datasets` can read.
        urls (`list[str]`): The files, in order; none of a `table`.
        sizes (`list[int | None]`): Bytes of each.
        columns (`list[str]`, *optional*): All columns of a parquet set, by its first file.
        first_rows (`float`, *optional*): About how many rows the first file has.
        hub (`HubSplit`, *optional*): Where the files are on the Hub.
    """

    name: str
    kind: str
    urls: list[str]
    sizes: list[int | None]
    columns: list[str] | None = None
    first_rows: float | None = None
    hub: HubSplit | None = None

    def to_json(self) -> dict[str, Any]:
        """`dict`: everything, JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RemoteData:
        """What [`to_json`] gave."""
        hub = value["hub"]
        return cls(**{**value, "hub": hub and HubSplit(**hub)})

    def files(self, timeout: float) -> list[RemoteFile]:
        """The files; this process's own token goes to the Hub, and nowhere else."""
        headers = _headers(self.urls)
        sized = zip(self.urls, self.sizes, strict=True)
        return [RemoteFile(url, headers, size=size, timeout=timeout) for url, size in sized]

    @property
    def fingerprint(self) -> str:
        """`str`: Of the commit, or of the addresses without what signs them."""
        if self.hub is not None:
            return fingerprint_text(self.hub.repo, self.hub.config or "", self.hub.split, self.hub.commit)
        addresses = [urlsplit(url)._replace(query="", fragment="").geturl() for url in self.urls]
        return fingerprint_text(*addresses, *(str(size) for size in self.sizes))


def find_remote(
    spec: str,
    *,
    streaming: bool | None,
    split: str,
    revision: str | None,
    config: str | None,
    data_format: str | None,
    timeout: float,
) -> RemoteData | None:
    """Files of a specification that is streamed from elsewhere; `None` if it names anything else.

    The arguments are those of [`open_pairs`], which takes the result as its `remote`.

    Raises:
        InputError: no such data set, split or revision, no access, an unknown format.
        TrainingStopped: a server does not answer.
    """
    if is_url(spec):
        return _at_urls(spec, data_format, timeout)
    named = resolve(spec, data_format, streaming)
    if not named.streaming or locate(named.spec, named.data_format)[0] != "hub":
        return None
    return _on_hub(named.spec, split, revision, config, timeout)


def _at_urls(spec: str, data_format: str | None, timeout: float) -> RemoteData:
    urls = expand_braces(spec)
    kind = data_format or format_of_names(urls)
    if kind not in ("webdataset", "parquet"):
        raise InputError(
            f"{urlsplit(spec).path}: only tars and parquet files are read from URLs. Say which these are with "
            "--data_format webdataset or parquet."
        )
    name = urlsplit(spec).path.rpartition("/")[2]
    return _explored(RemoteData(name, kind, urls, remote_sizes(urls, _headers(urls), timeout)), timeout)


def _on_hub(repo: str, split: str, revision: str | None, config: str | None, timeout: float) -> RemoteData:
    found, sizes = find_split(repo, split, revision, config, timeout)
    kind = format_of_names(list(sizes))
    if kind is None:
        return RemoteData(repo, "table", [], [], hub=found)
    urls = [hf_hub_url(repo, path, repo_type="dataset", revision=found.commit) for path in sizes]
    return _explored(RemoteData(repo, kind, urls, list(sizes.values()), hub=found), timeout)


def _explored(data: RemoteData, timeout: float) -> RemoteData:
    """With what the first file tells: its columns, and how long it is if no card tells the length of all."""
    files = data.files(timeout)
    if data.kind == "webdataset":
        stated = data.hub is not None and data.hub.rows is not None
        return data if stated else replace(data, first_rows=TarShard(files[0], TarLayout()).estimate_rows())
    for file in files[:FIRST_SHARDS]:
        try:
            with file.open() as handle:
                columns = pq.read_schema(handle).names
        except (InputError, TrainingStopped):
            raise
        except (pa.ArrowException, OSError) as error:
            fault = InputError(f"{file.address}: not a readable parquet file ({one_line(error)}).")
            continue
        return replace(data, columns=columns)
    raise fault


def _headers(urls: list[str]) -> dict[str, str] | None:
    """The token, if all URLs are of the Hub itself."""
    return build_hf_headers() if all(url.startswith(f"{constants.ENDPOINT}/") for url in urls) else None

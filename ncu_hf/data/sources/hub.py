"""The Hub: which commit, which files, how many rows. Nothing of the data itself is read here.

`datasets.load_dataset_builder` knows the conventions (cards with `configs`, names of files and folders), and reads the
card and listings only: some seven requests, and one for each thousand files. `load_dataset` would also read the
beginning of a tar, and take its first five samples for the schema of all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.network.http_client import HTTP_ERROR, Endpoint, Fault, Patience
from ncu_hf.data.sources.tables import Columns, TableSource, load, reading, undecoded
from ncu_hf.errors import InputError, one_line, one_of

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set at one commit.

    Args:
        repo (`str`): Id of the data set.
        split (`str`): Name of the split.
        commit (`str`): Full hash.
        config (`str`, *optional*): Configuration; the default one if not given.
        rows (`int`, *optional*): Rows of the split, if the card tells them.
    """

    repo: str
    split: str
    commit: str
    config: str | None = None
    rows: int | None = None


def find_split(
    repo: str, split: str, revision: str | None, config: str | None, timeout: float
) -> tuple[HubSplit, dict[str, int | None]]:
    """A split, and the paths of its files with their sizes; no files if some are not plain files of the repository.

    Args:
        repo, split (`str`): Id of the data set, and name of the split.
        revision, config (`str`, *optional*): Branch, tag or commit, and configuration; the default ones if not given.
        timeout (`float`): Seconds for which a Hub that is busy is asked again.

    Raises:
        InputError: no such data set, revision, configuration or split; no access; a data set that is a script.
        TrainingStopped: the Hub stays busy.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{repo}: HF_HUB_OFFLINE forbids to stream it. Unset it, or give a local copy.")
    return _patiently(lambda: _find_split(repo, split, revision, config), repo, timeout)


def _find_split(
    repo: str, split: str, revision: str | None, config: str | None
) -> tuple[HubSplit, dict[str, int | None]]:
    commit = hub_commit(repo, revision)
    with reading(repo):
        builder = datasets.load_dataset_builder(repo, config, revision=commit)
    files = {str(name): list(paths) for name, paths in (builder.config.data_files or {}).items()}
    one_of(f"{repo}: --split", split, files)
    rows = {str(name): info.num_examples for name, info in (builder.info.splits or {}).items()}
    found = HubSplit(repo, split, commit, config, rows.get(split) or None)
    root = f"hf://datasets/{repo}@{commit}/"
    if not all(file.startswith(root) for file in files[split]):
        return found, {}
    return found, _with_sizes(repo, commit, [file.removeprefix(root) for file in files[split]])


def _with_sizes(repo: str, commit: str, paths: list[str]) -> dict[str, int | None]:
    try:
        tree = HfApi().list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except (HTTP_ERROR, OSError) as error:
        raise InputError(f"{repo}: the Hub does not list its files ({one_line(error)}). Try again.") from error
    return {path: sizes.get(path) for path in paths}


def _patiently(ask: Callable[[], Answer], repo: str, timeout: float) -> Answer:
    """Ask again while the Hub answers that it is busy."""
    patience = Patience(Endpoint(f"{constants.ENDPOINT}/datasets/{repo}", timeout=timeout))
    while True:
        try:
            return ask()
        except InputError as error:
            if (status := _busy_status(error)) is None:
                raise
            patience.wait(Fault(f"the Hub answers {status}"))


def _busy_status(error: BaseException | None) -> int | None:
    """Status of the answer behind an error, if another attempt may get a better one."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return status if status == 429 or status >= 500 else None
        error = error.__cause__ or error.__context__
    return None


def hub_commit(repo: str, revision: str | None) -> str | None:
    """Commit that `revision` (default branch if None) stands for now; `revision` itself if the Hub is offline."""
    try:
        return HfApi().dataset_info(repo, revision=revision, timeout=30).sha
    except HFValidationError as error:
        raise InputError(f"{repo!r} is neither a file, a folder nor a data set id.") from error
    except OfflineModeIsEnabled:
        return revision
    except (HTTP_ERROR, OSError) as error:
        raise InputError(
            f"{repo!r}: no such file or folder, and the Hub does not give a data set of that id "
            f"({one_line(error)}). Check spelling, --data_revision, access rights and the connection."
        ) from error


def open_hub(
    repo: str,
    split: str,
    revision: str | None,
    config: str | None,
    image_column: str,
    caption_column: str,
    image_root: Path | None,
    class_column: str | None = None,
) -> TableSource:
    """Download a data set of the Hub and open it as a table."""
    commit = hub_commit(repo, revision)
    # `datasets` fetches every split of a configuration, and shows nothing of it here.
    logger.info("%s: all its splits are downloaded to %s, if not there yet.", repo, datasets.config.HF_DATASETS_CACHE)
    table = load(path=repo, name=config, split=split, revision=commit)
    columns = Columns.find(repo, table.column_names, image_column, caption_column, class_column)
    return TableSource(
        undecoded(table.select_columns(columns.names), columns.image),
        columns,
        [(repo, len(table))],
        name=repo,
        format="hub",
        fingerprint=fingerprint_text(repo, config or "", split, commit or str(len(table)), *columns.names),
        revision=commit,
        image_root=image_root,
    )

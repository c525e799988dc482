"""Files of a data set of the Hub, through the cache of `huggingface_hub`."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from ncu_hf.data.network.http_client import HTTP_ERROR
from ncu_hf.errors import InputError, one_line

# Signed addresses carry their signature here.
_QUERY = re.compile(r"\?[^\s'\")]*")
# RuntimeError: of the library that downloads large files. ValueError: an id that is none.
_ERRORS = (HTTP_ERROR, OSError, RuntimeError, ValueError)


def fetch(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    """Download the files of a data set that match, as far as they are not in the cache, with the user's login.

    Args:
        repo (`str`): Id `owner/name`.
        patterns (`list[str]`): E.g. `["test/*.tar"]`.
        revision (`str`, *optional*): Branch, tag or commit; the default branch if not given.

    Returns:
        `Path`: Folder of the files. Its name is the commit.

    Raises:
        InputError: no such data set or revision, no access, no connection, no space.
    """
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except _ERRORS as error:
        reason = _QUERY.sub("", one_line(_cause(error)))
        raise InputError(
            f"{repo}: the Hub does not give this data set ({reason}). Check its spelling, the revision, your access "
            "(`hf auth login`) and the connection."
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What lies behind the error that says that a file is not in the cache either."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

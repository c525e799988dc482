"""The commit of a model on the Hub that everything of it is loaded from: weights, configuration and processor."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, try_to_load_from_cache

from ncu_hf.data.network.http_client import HTTP_ERROR
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)

_SAFE = {"model.safetensors", "model.safetensors.index.json"}
_PICKLED = {"pytorch_model.bin", "pytorch_model.bin.index.json"}
# The Hub's converter proposes a safe copy of pickled weights in a pull request of this title.
_CONVERTER, _TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"


def pin(repo: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stands for; where its weights are pickled, that of their converted copy.

    Older models have safetensors in a pull request of the Hub's converter alone. One counts if it is open and proposes
    a copy of the very weights of the revision.

    Args:
        repo (`str`): Hub id; there is a model.
        revision (`str`, *optional*): Branch, tag or commit; `main` by default.

    Returns:
        `str`: a full hash. From the cache where the Hub does not answer (of a branch without safetensors, the one other
            commit there that has some); `revision` itself where that knows nothing.

    Raises:
        InputError: the weights are pickled, and there is no such copy.
    """
    try:
        return _pinned(HfApi(), repo, revision)
    except (HTTP_ERROR, OSError):
        return _cached(repo, revision) or revision


def _pinned(api: HfApi, repo: str, revision: str | None) -> str:
    info = api.model_info(repo, revision=revision, files_metadata=True)
    files = _blobs(info)
    pickled = {(name, blob) for name, blob in files.items() if name in _PICKLED}
    if _SAFE & files.keys() or not pickled:
        return info.sha
    asked = {"author": _CONVERTER, "discussion_type": "pull_request", "discussion_status": "open"}
    for request in api.get_repo_discussions(repo, **asked):
        if (request.author, request.title) == (_CONVERTER, _TITLE):
            proposed = api.model_info(repo, revision=request.git_reference, files_metadata=True)
            files = _blobs(proposed)
            if _SAFE & files.keys() and pickled <= files.items():
                return proposed.sha
    raise InputError(
        f"{repo}: its weights are pickled, and only safetensors are read. The Hub's converter has made no copy of "
        "them; ask for one at https://huggingface.co/spaces/safetensors/convert."
    )


def _cached(repo: str, revision: str | None) -> str | None:
    config = try_to_load_from_cache(repo, "config.json", revision=revision or "main")
    if not isinstance(config, str):
        return None
    commit = Path(config).parent
    if not _has_weights(commit):
        others = [other for other in commit.parent.iterdir() if _has_weights(other)]
        if len(others) == 1:
            logger.warning("%s: the Hub does not answer; its commit %s is in the cache.", repo, others[0].name)
            return others[0].name
    return commit.name


def _has_weights(snapshot: Path) -> bool:
    return any((snapshot / name).exists() for name in _SAFE)


def _blobs(info: ModelInfo) -> dict[str, str | None]:
    """Paths of a commit, with the hash of what is in each."""
    return {file.rfilename: file.blob_id for file in info.siblings or ()}

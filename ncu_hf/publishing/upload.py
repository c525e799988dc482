"""The upload of a run's folder as one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ncu_hf.data.ground_truth import INJECTED_NOISE
from ncu_hf.data.network.http_client import Fault
from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.evaluation.outcomes import OUTCOMES_FILE
from ncu_hf.publishing.access import check_visibility, explain, find_repository, full_id
from ncu_hf.publishing.attempts import Refused, insist, quiet_hub
from ncu_hf.publishing.card import RESULTS, name_repository
from ncu_hf.publishing.settings import HubSettings
from ncu_hf.reporting.hub_results import EVAL_RESULTS, PREFIX

# The settings name folders of this machine, outcomes on single items are for comparisons here, captions are data of
# others; checkpoints and the model before training stay here, and so do hidden files, apart from the evaluation
# results, which the Hub wants in a hidden folder.
LOCAL_FILES = ("run.json", OUTCOMES_FILE, INJECTED_NOISE)
LOCAL_FOLDERS = ("phases", "initial")
# What an earlier run left under these paths does not belong to this model; it stays in the history.
_REPLACED = ("negative_prompt/", "plots/", f"{EVAL_RESULTS}/{PREFIX}")


@dataclass(frozen=True)
class Published:
    """A commit on the Hub.

    Attributes:
        repo_id (`str`): `namespace/name`.
        commit (`str`): 40 hex digits.
        url (`str`): Address of the model's page.
    """

    repo_id: str
    commit: str
    url: str


def publish(folder: Path, settings: HubSettings) -> Published:
    """Upload the result in `folder`: model, processor, prompt, card, plots, numbers.

    The repository and the branch are made if they do not exist. Files that the Hub has are not sent again. Files that
    only the Hub has stay there, apart from prompt, plots and numbers of an earlier run. The card's commands name the
    repository from then on.

    Args:
        folder (`Path`): Output folder of a finished run.
        settings (`HubSettings`): Where to.

    Raises:
        InputError: the folder is not one of a finished run, or the Hub refuses.
        TrainingStopped: the Hub does not answer, or keeps answering that it cannot now.
    """
    check_folder(folder)
    api = settings.api()

    def upload() -> Published:
        repo_id = insist(lambda: full_id(settings, {} if "/" in settings.repo_id else api.whoami()))
        _make_repository(api, repo_id, settings)
        name_repository(folder, repo_id, settings.revision)
        files = list_files(folder)
        return commit(api, repo_id, folder, files, settings, "Model, card and measurements", _REPLACED)

    return _told(upload, folder, settings)


def publish_record(folder: Path, published: Published, settings: HubSettings) -> Published:
    """Upload the card and the numbers again, after they were changed. Raises as [`publish`] does."""
    api = settings.api()
    files = [PurePosixPath("README.md"), PurePosixPath(RESULTS)]
    message = "Verified by a fresh process"
    return _told(lambda: commit(api, published.repo_id, folder, files, settings, message), folder, settings)


def check_folder(folder: Path) -> None:
    """Refuse what is not the output of a finished run.

    Raises:
        InputError: says what is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the --output_dir of a finished run.")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            hint = "--resume_from_checkpoint true finishes it" if (folder / "phases").is_dir() else "give another"
            raise InputError(f"{folder}: has no {name}, so it is not the folder of a finished run; {hint}.")
    if not (folder / RESULTS).is_file():
        raise InputError(
            f"{folder}: has no {RESULTS}, from which the card is made, so it is not the folder of a finished run. "
            "Upload other models with: hf upload ID FOLDER"
        )


def list_files(folder: Path) -> list[PurePosixPath]:
    """What is published of a run's folder, as paths below it, sorted."""
    paths = (PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if _is_published(path))


def _is_published(path: PurePosixPath) -> bool:
    if path.parts[0] in LOCAL_FOLDERS or str(path) in LOCAL_FILES:
        return False
    visible = path.parts[1:] if path.parent.name == path.parts[0] == EVAL_RESULTS else path.parts
    return not any(part.startswith(".") for part in visible)


def commit(
    api: HfApi,
    repo_id: str,
    folder: Path,
    files: Iterable[PurePosixPath],
    settings: HubSettings,
    message: str,
    replaced: Iterable[str] = (),
) -> Published:
    """One commit of those files of `folder` that differ from what the branch has.

    Args:
        api (`HfApi`): Client.
        repo_id (`str`): `namespace/name`; exists.
        folder (`Path`): Where the files are.
        files (`Iterable[PurePosixPath]`): Relative to it.
        settings (`HubSettings`): For the branch.
        message (`str`): What the history says.
        replaced (`Iterable[str]`): Other files whose path starts with one of these are deleted.

    Raises:
        Refused or Fault: see [`~ncu_hf.publishing.attempts.insist`].
    """

    def attempt() -> str:
        # New operations each time: an old one would not see that a commit arrived whose answer was lost.
        operations = [CommitOperationAdd(str(path), folder / path) for path in files]
        there = api.list_repo_files(repo_id, revision=settings.revision) if replaced else []
        stale = {name for name in there if name.startswith(tuple(replaced))}
        operations += [CommitOperationDelete(name) for name in sorted(stale - {str(path) for path in files})]
        return api.create_commit(repo_id, operations, commit_message=message, revision=settings.revision).oid

    oid = insist(attempt)
    branch = f"/tree/{settings.revision}" if settings.revision else ""
    return Published(repo_id, oid, f"{api.endpoint}/{repo_id}{branch}")


def _make_repository(api: HfApi, repo_id: str, settings: HubSettings) -> None:
    found = insist(lambda: find_repository(api, repo_id))
    check_visibility(settings, found)
    if found is None:
        insist(lambda: api.create_repo(repo_id, private=settings.private, exist_ok=True))
    if settings.revision and not settings.revision.startswith("refs/"):
        refs = insist(lambda: api.list_repo_refs(repo_id))
        if settings.revision in (tag.name for tag in refs.tags):
            raise InputError(f"{repo_id}: {settings.revision!r} is a tag there; only a branch can be written to.")
        if settings.revision not in (branch.name for branch in refs.branches):
            insist(lambda: api.create_branch(repo_id, branch=settings.revision, exist_ok=True))


def _told(upload: Callable[[], Published], folder: Path, settings: HubSettings) -> Published:
    """What `upload` gives; its failures as one line that says how to go on."""
    again = (
        f"The result is in {folder}; what has arrived is not sent again. Publish it with: {settings.command(folder)}"
    )
    try:
        with quiet_hub():
            return upload()
    except Refused as error:
        raise InputError(f"{settings.repo_id}: not published, {explain(error, settings)} {again}") from None
    except Fault as error:
        raise TrainingStopped(f"{settings.repo_id}: not published, {explain(error, settings)} {again}") from None

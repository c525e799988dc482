"""Publication of a finished run."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.data.network.http_client import HTTP_ERROR
from ncu_hf.errors import InputError, one_line

# Checkpoints, the model before training, and settings that name local folders stay here.
_LOCAL = ["phases/**", "initial/**", "run.json", ".*"]

_HUB_ERRORS = (HTTP_ERROR, HFValidationError, OSError, ValueError)


def check_login(training: NCUTrainingArguments) -> None:
    """Find out before training whether there is a token that the Hub knows.

    Raises:
        InputError: none, or the Hub refuses it or cannot be reached.
    """
    try:
        HfApi(token=training.hub_token).whoami()
    except _HUB_ERRORS as error:
        raise InputError(
            f"--push_to_hub: no access to the Hub ({one_line(error)}). Log in with: hf auth login."
        ) from error


def publish(folder: Path, training: NCUTrainingArguments) -> str:
    """Upload the result in `folder` (model, processor, prompt, card, plots, numbers) as one commit.

    Args:
        folder (`Path`): Output folder of a finished run.
        training (`NCUTrainingArguments`): `hub_model_id` (the folder's name if not given), `hub_private_repo`,
            `hub_revision`, `hub_token` (else the token that `hf auth login` stored).

    Returns:
        `str`: address of the commit.

    Raises:
        InputError: the Hub refuses (no permission, wrong id). What was trained stays in `folder`.
    """
    api = HfApi(token=training.hub_token)
    try:
        repo = api.create_repo(
            training.hub_model_id or folder.resolve().name, private=training.hub_private_repo, exist_ok=True
        )
        return api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            revision=training.hub_revision,
            commit_message="Model, card and measurements",
            ignore_patterns=_LOCAL,
        ).commit_url
    except _HUB_ERRORS as error:
        raise InputError(
            f"--push_to_hub: not published ({one_line(error)}). The result is in {folder}; "
            "the same command with --resume_from_checkpoint true tries again."
        ) from error

"""Who may write where: checked before training, and told in one line."""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from ncu_hf.data.network.http_client import Fault
from ncu_hf.errors import InputError
from ncu_hf.publishing.attempts import Refused, insist, quiet_hub
from ncu_hf.publishing.settings import HubSettings

logger = logging.getLogger(__name__)


def check_login(settings: HubSettings) -> None:
    """Find out before training whether its result could be published. Writes nothing.

    Raises:
        InputError: no token, one that the Hub does not know or that may only read, the Hub cannot be reached, or a
            public repository where a private one was asked for.
    """
    api = settings.api()
    try:
        with quiet_hub():
            user = insist(api.whoami, attempts=2)
            found = insist(lambda: find_repository(api, full_id(settings, user)), attempts=2)
    except (Refused, Fault) as error:
        raise InputError(f"{settings.repo_id}: no access to {constants.ENDPOINT}: {explain(error, settings)}") from None
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"{settings.repo_id}: the token may only read. Make one that writes at hf.co/settings/tokens.")
    check_visibility(settings, found)
    namespace = full_id(settings, user).partition("/")[0]
    if namespace not in (user["name"], *(organisation["name"] for organisation in user.get("orgs", []))):
        logger.warning("%s: %s is not known to belong to %r.", settings.repo_id, user["name"], namespace)


def full_id(settings: HubSettings, user: dict[str, Any]) -> str:
    """`namespace/name`; `user` is the Hub's answer to whoami."""
    return settings.repo_id if "/" in settings.repo_id else f"{user['name']}/{settings.repo_id}"


def find_repository(api: HfApi, repo_id: str) -> ModelInfo | None:
    """What the Hub tells of a repository; `None` if there is none that the token may see."""
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def check_visibility(settings: HubSettings, found: ModelInfo | None) -> None:
    """Nothing that was meant to be private goes to a repository that all can read.

    Raises:
        InputError: it would.
    """
    if settings.private and found is not None and not found.private:
        raise InputError(
            f"{found.id}: a private repository was asked for, and this one exists and is public. Make it private in "
            "its settings on the Hub, or give another id."
        )


def explain(error: Refused | Fault, settings: HubSettings) -> str:
    """A failure in words, with what to do about it, as one line without secrets."""
    words = settings.clean(str(error)).rstrip(".")
    if isinstance(error, Fault):
        return f"{words}. Try again later, and check the connection."
    if error.status == 403:
        return f"not allowed (403: {words}). Use a token that may write to {settings.repo_id}."
    if error.unknown_repository:
        return f"it is not there, or the token may not see it ({error.status}). Check the id and the token."
    if error.status == 401:
        return "the token is not accepted (401). Log in with `hf auth login`, or set HF_TOKEN."
    return f"{words} ({error.status})." if error.status else f"{words}."

"""Where on the Hub a run goes."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.errors import InputError, one_line
from ncu_hf.reporting.results import publishable

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSettings:
    """A repository of models, and who writes to it.

    Args:
        repo_id (`str`): `name`, in the namespace of the token's user, or `namespace/name`.
        private (`bool`, *optional*): Visibility of a repository that does not exist yet; the namespace's default if
            not given. `True` also refuses one that is public.
        revision (`str`, *optional*): Branch, made from `main` if it does not exist; `main` if not given.
        token (`str`, *optional*): Access token; the one of `HF_TOKEN` or of `hf auth login` if not given.

    Raises:
        InputError: the id, the revision or the token cannot be right.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise InputError(f"--hub_model_id: {one_line(error)} Give one like me/clip-b32-ncu.") from error
        if self.revision is not None and (_COMMIT.fullmatch(self.revision) or not self.revision.strip()):
            raise InputError(f"{self.repo_id}: {self.revision!r} is not a branch; only a branch can be written to.")
        _check_token("--hub_token", self.token or "")

    @classmethod
    def of(cls, training: NCUTrainingArguments) -> HubSettings:
        """Those of a run; a run that does not name a repository gets one with the name of its output folder."""
        return cls(
            repo_id=training.hub_model_id or Path(training.output_dir).resolve().name,
            private=training.hub_private_repo,
            revision=training.hub_revision,
            token=training.hub_token,
        )

    def resolve_token(self) -> str:
        """The token that is used.

        Raises:
            InputError: there is none, or it cannot be sent.
        """
        token = self.token or get_token()
        if not token:
            raise InputError(f"{self.repo_id}: no access token. Log in with `hf auth login`, or set HF_TOKEN.")
        _check_token(f"{self.repo_id}: the access token of HF_TOKEN or `hf auth login`", token)
        return token

    def api(self) -> HfApi:
        """Client of the Hub with the token."""
        return HfApi(token=self.resolve_token())

    def clean(self, text: str) -> str:
        """`text` without the token, other tokens, signatures of URLs and folders of this machine."""
        token = self.token or get_token()
        return publishable(text.replace(token, "...") if token else text)

    def command(self, folder: Path) -> str:
        """What publishes `folder` (again)."""
        words = ["python", "scripts/publish.py", str(folder), "--hub_model_id", self.repo_id]
        words += ["--private"] if self.private else []
        words += ["--revision", self.revision] if self.revision else []
        return shlex.join(words)


def _check_token(name: str, token: str) -> None:
    """It is sent in a header, which an HTTP client refuses with its value in the message."""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(f"{name} has characters that no token has. Copy it again from hf.co/settings/tokens.")

"""Calls to the Hub: which failures are final, and how often the others are tried again.

The Hub's library repeats some requests by itself (the upload of a file, not the commit). Here a whole call is repeated,
which sends no file twice: the Hub tells which ones it has.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError

from ncu_hf.data.network.http_client import HTTP_ERROR, Fault, asked_wait
from ncu_hf.errors import one_line

logger = logging.getLogger(__name__)

# Waits of 2, 4, ... 60 s between them, three minutes in all, and what the server asks for (Retry-After).
ATTEMPTS = 8
_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_RETRY_AFTER = 2.0, 60.0, 300.0
# 409: another commit is being written. 412: the branch has moved since. Both pass.
_PASSING = {408, 409, 412, 425, 429}
# How the client of the Xet storage tells of an answer; it asks no server whether it has such a storage.
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_XET_HINT = "it has no Xet storage; set HF_HUB_DISABLE_XET=1"
_sleep = time.sleep  # replaced in tests

# What the Hub's library and `from_pretrained` raise on answers and files that are not as they should be.
CALL_ERRORS = (HTTP_ERROR, OSError, ValueError, RuntimeError, TypeError, LookupError, SafetensorError)

Result = TypeVar("Result")


class Refused(Exception):
    """An answer that would be the same the next time.

    Attributes:
        status (`int`, *optional*): HTTP status, if there was an answer.
        unknown_repository (`bool`): It says that there is no such repository, or none that the token may see.
    """

    def __init__(self, what: str, status: int | None = None, unknown_repository: bool = False):
        super().__init__(what)
        self.status, self.unknown_repository = status, unknown_repository


def insist(call: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """Call until it works, as long as it fails by something that may pass.

    Args:
        call (`Callable`): May be repeated.
        attempts (`int`): How often at most.

    Raises:
        Refused: a failure that is final. Its words may quote a secret.
        Fault: the last of the failures that might have passed.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except CALL_ERRORS as error:
            found = judge(error)
            if isinstance(found, Refused) or attempt == attempts:
                raise found from error
        backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        seconds = max(backoff, min(found.wait, _LONGEST_RETRY_AFTER))
        logger.warning("The Hub: %s; trying again in %.0f s (%d of %d).", found, seconds, attempt, attempts - 1)
        _sleep(seconds)
    raise ValueError(f"attempts must be at least 1, got {attempts}")


def judge(error: BaseException) -> Fault | Refused:
    """What a failure stands for. The cause counts: libraries wrap it in errors of their own."""
    for link in _chain(error):
        if isinstance(link, OfflineModeIsEnabled):
            return Refused("HF_HUB_OFFLINE forbids all requests; unset it")
        if isinstance(link, HfHubHTTPError):
            return _judge_answer(link, error)
        if isinstance(link, ConnectionError) and (status := _XET_STATUS.search(str(link))):
            return _judge_status(int(status[1]), _XET_HINT if status[1] == "404" else one_line(link))
        if isinstance(link, HTTP_ERROR | ConnectionError | TimeoutError):
            return Fault(f"no answer ({type(link).__name__})")  # its message may quote a header
    if isinstance(error, json.JSONDecodeError):
        return Fault("it answers something that is not JSON")  # an error page of a proxy
    # The storage client raises plain RuntimeErrors, and so does an HTTP client that another thread has closed.
    unexplained = type(error) is RuntimeError and error.__cause__ is None
    return Fault(one_line(error)) if unexplained else Refused(one_line(error.__cause__ or error))


def _judge_answer(answer: HfHubHTTPError, error: BaseException) -> Fault | Refused:
    # The library lists in a ValueError what is wrong with a card.
    words = str(error) if type(error) is ValueError else answer.server_message or str(answer)
    wait = asked_wait(answer.response.headers)
    unknown = isinstance(answer, RepositoryNotFoundError)
    if answer.response.status_code == 403 and not str(answer.response.url).startswith(constants.ENDPOINT):
        return Fault("the storage answers 403", wait)  # a signature that has expired: the Hub gives another one
    return _judge_status(answer.response.status_code, " ".join(words.split())[:300], wait, unknown)


def _judge_status(status: int, words: str, wait: float = 0.0, unknown: bool = False) -> Fault | Refused:
    if status in _PASSING or status >= 500:
        return Fault(f"it answers {status}", wait)
    return Refused(words, status, unknown)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def quiet_hub() -> Iterator[None]:
    """The library's warnings show signatures of URLs; its progress bars are for a terminal only."""
    level, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()

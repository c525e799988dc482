"""Which failures are final."""

from __future__ import annotations

import importlib
import json

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ncu_hf.data.network.http_client import HTTP_ERROR, Fault
from ncu_hf.publishing.attempts import Refused, insist, judge

HTTP = importlib.import_module(HTTP_ERROR.__module__.partition(".")[0])  # the client that the library is built on
XET = "Network error: Request error: HTTP status {} error ({}), domain: https://hub/xet-write-token/main"


def wrapped(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionError("reset"), Fault, "no answer"),
        (TimeoutError("slow"), Fault, "no answer"),
        (HTTP_ERROR("header value b'Bearer hf_secret'"), Fault, "no answer (HTTPError)"),
        (wrapped(ConnectionResetError("cut")), Fault, "no answer (ConnectionResetError)"),
        (RuntimeError("channel closed"), Fault, "channel closed"),
        (json.JSONDecodeError("x", "<html>", 0), Fault, "not JSON"),
        (ConnectionError(XET.format("server", "503 Service Unavailable")), Fault, "answers 503"),
        (ConnectionError(XET.format("client", "403 Forbidden")), Refused, "403"),
        (ConnectionError(XET.format("client", "404 Not Found")), Refused, "HF_HUB_DISABLE_XET=1"),
        (OfflineModeIsEnabled("offline"), Refused, "HF_HUB_OFFLINE"),
        (FileNotFoundError("model.safetensors"), Refused, "model.safetensors"),
        (wrapped(PermissionError("denied")), Refused, "denied"),
        (ValueError("LFS batch API\nreturned errors"), Refused, "LFS batch API returned errors"),
    ],
)
def test_judged_by_the_cause(error, kind, words):
    found = judge(error)
    assert type(found) is kind and words in str(found) and "hf_secret" not in str(found)


@pytest.mark.parametrize(("address", "kind"), [("https://hub/api", Refused), ("https://storage/x?Signature=a", Fault)])
def test_a_signature_may_expire(monkeypatch, address, kind):
    """403 of the storage: the next attempt is given a new signature."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub")
    answer = HTTP.Response(403, request=HTTP.Request("PUT", address))
    found = judge(wrapped(HfHubHTTPError("no", response=answer)))
    assert type(found) is kind and "Signature" not in str(found)


def test_insist_gives_up_and_says_why(waits):
    calls = []

    def fails():
        calls.append(1)
        raise ConnectionError

    with pytest.raises(Fault, match="no answer"):
        insist(fails, attempts=3)
    assert len(calls) == 3 and len(waits) == 2 and 1 <= waits[0] <= 2 <= waits[1] <= 4
    assert insist(lambda: 5) == 5


def test_a_mistake_of_ours_is_not_tried_again(waits):
    def wrong():
        raise AssertionError

    with pytest.raises(AssertionError):
        insist(wrong)
    assert waits == []

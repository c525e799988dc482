"""The two exceptions that a recipe prints as one line: wrong input (exit code 2) and a run that cannot go on (1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input. The message is one line that says what is wrong, where, and what to do about it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Hint for a misspelt word.

    Args:
        word (`str`): What the user wrote.
        known (`Iterable[str]`): The words that would have been accepted.

    Returns:
        `str`: `" Did you mean 'x'?"`, or an empty string if nothing is close.
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """Check that `value` is one of `known`.

    Raises:
        InputError: names the flag, the value, the nearest known word and all known words.
    """
    known = list(known)
    if value not in known:
        raise InputError(f"{name}: unknown value {value!r}.{nearest(value, known)} Known: {', '.join(known)}.")
    return value


def one_line(error: BaseException, limit: int = 300) -> str:
    """Another library's message as one line of at most `limit` characters; the error's class if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class TrainingStopped(RuntimeError):
    """The run cannot go on: its loss is not finite, a server is silent. The message is one line; nothing is lost."""

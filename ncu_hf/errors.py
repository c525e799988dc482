"""The one exception that means "the user can fix this": a recipe prints it as one line and exits with code 2."""

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


class TrainingStopped(RuntimeError):
    """The run cannot go on (non-finite loss, too many bad records). The message is one line; nothing is lost."""

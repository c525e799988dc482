"""Text of users and of data sets inside Markdown: shown as it is, it never becomes markup, a row or a heading."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LONGEST = 200  # characters of one value; all of it is in results.json
LONGEST_BLOCK = 4000
LONGEST_SLUG = 96  # as the Hub's names
# Underscores inside a word are no markup. Braces and dollars are none on the Hub.
MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)")
LINE_START = re.compile(r"^(?:[#+\-=]+(?=\s|$)|\d+(?=[.)](?:\s|$)))")
TURNS_AROUND = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # reorder what stands beside them
BACKTICKS = re.compile("`+")


def one_line(text: object, limit: int = LONGEST) -> str:
    """Text on one line without control characters, cut after `limit` characters."""
    return _cut(_visible(" ".join(str(text).split())), limit)


def _visible(text: str) -> str:
    text = TURNS_AROUND.sub("", text.replace("\t", " "))
    return "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cs"))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def plain(text: object) -> str:
    """Text for a line, a list or a cell, on one line; every sign that Markdown or HTML would act on is escaped."""
    line = MARKUP.sub(lambda match: "\\" + match.group(), one_line(text))
    return LINE_START.sub(lambda match: _escape_last(match.group()), line)


def _escape_last(start: str) -> str:
    # "1." is a list, and only its full stop can be escaped; the others are escaped at their first sign.
    return start + "\\" if start.isdigit() else "\\" + start


def code(text: object) -> str:
    """A code span, on one line."""
    line = one_line(text)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_cell(text: object) -> str:
    """A code span inside a table, where a bar ends the cell even in code."""
    return code(text).replace("\\|", "\\ |").replace("|", "\\|")


def code_block(text: object, language: str = "") -> str:
    """A fenced block; its fence is longer than any in the text."""
    body = _cut("\n".join(_visible(line).rstrip() for line in str(text).strip().splitlines()), LONGEST_BLOCK)
    fence = "`" * max(3, _longest_run(body) + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, BACKTICKS.findall(text)), default=0)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table of cells that are escaped already; columns that are empty in all rows are left out.

    Args:
        heads (`Sequence[str]`): One for each column.
        rows (`Sequence[Sequence[str]]`): Cells.
        left (`int`, *optional*, defaults to 1): Columns aligned to the left; the others hold numbers.

    Returns:
        `str`: empty without rows.
    """
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    if not kept:
        return ""
    rule = ["---" if column < left else "---:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(line[column] for column in kept) + " |" for line in (heads, rule, *rows))


def is_hub_id(name: object) -> bool:
    """Whether the Hub could have a repository of this id."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str)


def hub_link(hub_id: str, revision: str | None = None) -> str:
    """Link to a data set at a revision; the escaped text alone if that is no id."""
    if not is_hub_id(hub_id):
        return plain(hub_id)
    at = f"/tree/{revision}" if revision is not None and re.fullmatch(r"[\w.\-]+", revision) else ""
    return f"[{hub_id}](https://huggingface.co/datasets/{hub_id}{at})"


def slug(name: object) -> str:
    """`name` as an identifier of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^a-z0-9._]+", "-", str(name).lower())[:LONGEST_SLUG].strip("-._") or "unnamed"

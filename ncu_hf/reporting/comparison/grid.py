"""Columns of text for a terminal: aligned, of a limited width, stacked where they do not fit."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata

from ncu_hf.reporting.markdown import one_line

GAP = 2  # blanks between two columns
NARROWEST, WIDEST = 60, 160
HEAD, SHORTEST, LONGEST = 12, 12, 44  # widths: of a wrapped heading at least, of a label at least and at most

Column = tuple[str, list[str]]


def line_width(width: int | None) -> int:
    return min(max(width or shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def titled(title: str, labels: list[Column], columns: list[Column], width: int) -> str:
    """Aligned lines of at most `width`; columns that do not fit beside the labels go into further blocks."""
    widest = max(map(_column_width, columns))
    longest = max(SHORTEST, min(LONGEST, width - widest - GAP - sum(GAP + _column_width(c) for c in labels[1:])))
    labels = [(labels[0][0], [shorten(cell, longest) for cell in labels[0][1]]), *labels[1:]]
    free = width + GAP - sum(_column_width(column) + GAP for column in labels)
    blocks, room = [[]], free
    for column in columns:
        room -= GAP + _column_width(column)
        if room < 0 and blocks[-1]:
            blocks.append([])
            room = free - GAP - _column_width(column)
        blocks[-1].append(column)
    heading = f"-- {shorten(one_line(title), width - 4)} ".ljust(width, "-")
    return heading + "\n" + "\n\n".join(_aligned(labels, block) for block in blocks)


def filled(lines: list[str], width: int) -> str:
    return "\n".join(textwrap.fill(one_line(line, len(line)), width, subsequent_indent="  ") for line in lines)


def _head_lines(column: Column) -> list[str]:
    return textwrap.wrap(column[0], max([HEAD, *map(_width, column[1])])) or [""]


def _column_width(column: Column) -> int:
    return max(map(_width, [*_head_lines(column), *column[1]]))


def _aligned(labels: list[Column], columns: list[Column]) -> str:
    everything = [*labels, *columns]
    height = max(len(_head_lines(column)) for column in everything)
    padded = []
    for index, column in enumerate(everything):
        heads, width = _head_lines(column), _column_width(column)
        cells = [""] * (height - len(heads)) + heads + column[1]
        blanks = [" " * (width - _width(cell)) for cell in cells]
        padded.append([c + b if index < len(labels) else b + c for c, b in zip(cells, blanks, strict=True)])
    return "\n".join((" " * GAP).join(line).rstrip() for line in zip(*padded, strict=True))


def _width(text: str) -> int:
    """Cells of a terminal that a text takes: two for a wide letter, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def shorten(text: str, width: int) -> str:
    """Text with its middle left out if it is too long: names differ at their ends."""
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
    return f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"

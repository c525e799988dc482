"""Before/after tables: one list of rows, printed for the terminal or as Markdown."""

from __future__ import annotations

from itertools import groupby

from ncu_hf.reporting.markdown import one_line, plain, table
from ncu_hf.reporting.results import SIDES
from ncu_hf.reporting.rows import DIRECTIONS, PROBE, ZERO_SHOT, Row, average_row, result_rows

MARK = " *"


def before_after_table(results: dict) -> str:
    """Aligned table for a terminal of 80 columns. Shares are in percent, with their 95 % interval where there is one.

    Args:
        results (`dict`): See `ncu_hf.reporting.results`; only the groups of results are read.

    Returns:
        `str`: without line break at the end; empty if nothing was measured.
    """
    rows = table_rows(results)
    if not rows:
        return ""
    head = ("", *_heads(rows))
    lines = [(row, (_name(row), *_values(row, rows))) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *(cells for _, cells in lines), strict=True)]
    printed = [_aligned(head, widths), ""]
    for group, members in groupby(lines, key=lambda line: line[0].group):
        printed.append(f"-- {group} ".ljust(sum(widths) + 2 * len(widths) - 2, "-"))
        for _, block in groupby(members, key=lambda line: (line[0].set_name, _direction(line[0]))):
            found = list(block)
            printed.append(_title(found[0][0]))
            printed += [_aligned(cells, widths) for _, cells in found]
    if any(row.primary for row in rows):
        printed += ["", "* the set's primary metric"]
    return "\n".join(printed)


def _direction(row: Row) -> str:
    """`"image to text"` of a recall or rank; its rows stand under a title of their own, so that lines stay short."""
    return next((words for words in DIRECTIONS.values() if row.name.startswith(f"{words} ")), "")


def _title(row: Row) -> str:
    """What the rows that follow belong to, and how many items they are of."""
    direction = _direction(row)
    title = f"  {direction}" if direction else one_line(row.set_name) or "training pairs"
    return title if row.n is None else f"{title} (n = {row.size()})"


def _name(row: Row) -> str:
    direction = _direction(row)
    return ("    " if direction else "  ") + row.name.removeprefix(f"{direction} ") + (MARK if row.primary else "")


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def markdown_table(results: dict, group: str | None = None) -> str:
    """The same as Markdown; the primary metric of a set comes first, in bold.

    Args:
        results (`dict`): See `ncu_hf.reporting.results`.
        group (`str`, *optional*): Only these rows, one of the names in `ncu_hf.reporting.rows`.

    Returns:
        `str`: empty if there are no such rows.
    """
    rows = [row for row in table_rows(results) if group in (None, row.group)]
    lines, last = [], ""
    for row in rows:
        name = f"**{row.name}**" if row.primary else row.name
        lines.append((plain(row.set_name) if row.set_name != last else "", name, *_values(row, rows), row.size()))
        last = row.set_name
    return table(("set", "metric", *_heads(rows), "n"), lines, left=2)


def table_rows(results: dict) -> list[Row]:
    """The rows of a run with the averages over sets, each after the sets that it averages."""
    rows = result_rows(results)
    complete: list[Row] = []
    for group, members in groupby(rows, key=lambda row: row.group):
        complete += members
        average = average_row(rows, group) if group in (ZERO_SHOT, PROBE) else None
        complete += [average] if average is not None else []
    return complete


def _heads(rows: list[Row]) -> tuple[str, ...]:
    return (*SIDES, "difference") if _has_before(rows) else ("value",)


def _values(row: Row, rows: list[Row]) -> tuple[str, ...]:
    return (*map(row.value, SIDES), row.difference()) if _has_before(rows) else (row.value("after"),)


def _has_before(rows: list[Row]) -> bool:
    return any("before" in row.values for row in rows)

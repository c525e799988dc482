"""docs/performance.md says what the JSON files beside it say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "performance.md").read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- ([\w.]+): (\w+) -->\n\|(.*)\|\n\|[-: |]+\|\n((?:\|.*\|\n)+)")
FILES = sorted({name for name, *_ in TABLE.findall(TEXT)})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def told(cell: str, value: float | str | None) -> bool:
    """Whether a cell is the value, to as many digits as it has."""
    if value is None or isinstance(value, str):
        return cell == ("-" if value is None else value)
    number = cell.replace(",", "")
    digits = len(number.partition(".")[2].partition("e")[0])
    return number in (f"{value:.{digits}f}", f"{value:.{digits}e}")


@pytest.mark.parametrize("name", FILES)
def test_tables_are_those_of_the_json(name):
    report = json.loads((DOCS / "performance" / name).read_text(encoding="utf-8"))
    found = [table for table in TABLE.findall(TEXT) if table[0] == name]
    for _, table, head, body in found:
        keys, lines = [key.strip("`") for key in cells(head)], body.strip().splitlines()
        assert len(lines) == len(report[table])
        for line, row in zip(lines, report[table], strict=True):
            for key, cell in zip(keys, cells(line), strict=True):
                assert told(cell, row[key]), (name, table, key, cell, row[key])


def test_every_report_is_shown_and_names_its_machine():
    reports = sorted(path.name for path in (DOCS / "performance").glob("*.json"))
    assert FILES and set(FILES) <= set(reports)
    for name in reports:
        report = json.loads((DOCS / "performance" / name).read_text(encoding="utf-8"))
        assert name in TEXT
        assert report["command"] and report["machine"]["cores"] and report["versions"]["torch"]
        assert re.findall(r'"/[a-z]+/[^"]*"', json.dumps(report["command"])) == []


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXT)
    assert targets and [target for target in targets if not (DOCS / target).exists()] == []

"""The card and the numbers of a run's folder, brought up to date with its publication."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.errors import InputError, one_line
from ncu_hf.reporting.model_card import render_model_card

logger = logging.getLogger(__name__)

RESULTS = "results.json"


def name_repository(folder: Path, repo_id: str, revision: str | None) -> None:
    """Write where the model lies into numbers and card; what was verified in another place is no longer told."""
    results = read_results(folder)
    place = {"hub_model_id": repo_id, "hub_revision": revision}
    if {name: results.get(name) for name in place} != place:
        changed = {key: value for key, value in results.items() if key not in ("verification", *place)}
        rewrite(folder, {**changed, **{name: value for name, value in place.items() if value is not None}})
    elif not (folder / "README.md").is_file():
        rewrite(folder, results)


def record_verification(folder: Path, verification: dict[str, Any]) -> bool:
    """Write a verification into numbers and card, unless an earlier one says the same of the same weights.

    Returns:
        `bool`: whether anything was written.
    """
    results = read_results(folder)

    def without_commit(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "commit"}

    if without_commit(results.get("verification", {})) == without_commit(verification):
        return False
    rewrite(folder, {**results, "verification": verification})
    return True


def read_results(folder: Path) -> dict[str, Any]:
    """The numbers of a run.

    Raises:
        InputError: the file is not what a run wrote.
    """
    try:
        results = read_json(folder / RESULTS)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RESULTS}: cannot be read ({one_line(error)}).") from error
    if not isinstance(results, dict):
        raise InputError(f"{folder / RESULTS}: is not what a run writes.")
    return results


def rewrite(folder: Path, results: dict[str, Any]) -> None:
    """Write changed numbers, and the card from them unless someone has edited it.

    Raises:
        InputError: no card can be made from the numbers.
    """
    path = folder / "README.md"
    try:
        ours = not path.is_file() or path.read_text(encoding="utf-8") == render_model_card(read_results(folder))
        card = render_model_card(results)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / RESULTS}: no card can be made from it ({one_line(error)}).") from error
    write_json(folder / RESULTS, results)
    if ours:
        path.write_text(card, encoding="utf-8")
    else:
        logger.warning("%s was edited and stays as it is; without it, a new one is written.", path)

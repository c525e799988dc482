"""The card and the numbers of a run's folder, brought up to date with its publication."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from ncu_hf.checkpoint import read_json, write_json
from ncu_hf.errors import InputError, one_line
from ncu_hf.reporting.model_card import render_model_card

logger = logging.getLogger(__name__)

RESULTS = "results.json"
_CARD_SHA256 = "card_sha256"  # of the card as it was written, by whichever release


def name_repository(folder: Path, repo_id: str, revision: str | None) -> None:
    """Write where the model lies into numbers and card, whose title is the repository's name.

    What was verified in another place, or of other weights, is no longer told.
    """
    results = read_results(folder)
    place = {"model_name": repo_id.rpartition("/")[2], "hub_model_id": repo_id, "hub_revision": revision}
    moved = {name: results.get(name) for name in place} != place
    verified = results.get("verification", {}).get("weights_sha256")
    if moved or (verified is not None and verified != file_sha256(folder / "model.safetensors")):
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


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rewrite(folder: Path, results: dict[str, Any]) -> None:
    """Write changed numbers, and the card from them unless someone has edited it.

    Raises:
        InputError: no card can be made from the numbers.
    """
    path = folder / "README.md"
    try:
        card = render_model_card(results)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / RESULTS}: no card can be made from it ({one_line(error)}).") from error
    if not path.is_file() or file_sha256(path) == results.get(_CARD_SHA256):
        path.write_text(card, encoding="utf-8")
        write_results(folder, results)
    else:
        logger.warning("%s was edited and stays as it is; without it, a new one is written.", path)
        write_json(folder / RESULTS, results)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write the numbers beside the card that was made from them, so that an edited card is known as such later."""
    write_json(folder / RESULTS, {**results, _CARD_SHA256: file_sha256(folder / "README.md")})

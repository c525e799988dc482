"""The results of a run as one plain dict: its layout, and the copy of it that may be published.

```
run = {
  "model_name": "clip-ncu",             # title of the card, name in model-index
  "method": "ncu",                      # "clip", ...
  "formulation": "released",            # optional: only for methods that have one
  "base_model": {"name": "openai/clip-vit-base-patch32", "kind": "hub", "revision": "..."},
                                        # kind "hub" (name is a Hub id), "local", or "scratch" (random weights)
  "hub_model_id": "me/clip-ncu",        # optional
  "license": "mit",                     # optional: only if known
  "language": "en",                     # optional
  "data": {"description": "...", "hub_id": "...", "revision": "...", "n_pairs": 10000, "noise_share": 0.3,
           "subset": {"share": 0.5, "seed": 0, "shards": 288},   # or "count" for "share", "rows" for "shards"
           "eval_description": "...", "eval_hub_id": "...", "eval_revision": "..."},   # all but description optional
  "data_health": {"seen": 10000, "skipped": 3, "reasons": {"truncated": 3}},           # optional
  "hyperparameters": {"forget_ratio": 0.1, ...},
  "paper_hyperparameters": {"forget_ratio": 0.1, ...},   # optional; the card marks where the two differ
  "phases": [{"name": "negative_prompt", "steps": 78, "epochs": 2, "seconds": 31.5}, ...],
  "retrieval": {"before": R, "after": R},                # R: ncu_hf.evaluation.retrieval.evaluate_retrieval
  "zero_shot": {"colour": {"before": Z, "after": Z}},    # Z: ncu_hf.evaluation.zero_shot.evaluate_zero_shot
  "similarity": {"before": S, "after": S},               # S: ncu_hf.evaluation.similarity.summarise_similarity
  "forget_set": {"before": F, "after": F},               # F: ncu_hf.evaluation.detection.forget_set_metrics
  "plots": {"losses": "plots/losses.png", "similarities": "plots/similarities.png"},   # relative to the card
  "prompt": {"folder": "negative_prompt", "length": 8},  # optional: a negative prompt lies beside the model
  "command": "accelerate launch recipes/ncu.py ...",     # optional
  "environment": {"torch": "2.13.0", ...},               # optional
}
```

Shares (recall, accuracy, precision) lie in [0, 1], intervals are [low, high] of 95 %; tables show percent.
"before" is missing where there is no earlier model (trained from scratch). Every group of results is optional.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from ncu_hf.data.files import public_address

SIDES = ("before", "after")
# A path starts at a slash that does not continue a word, a URL or a relative path.
ABSOLUTE_PATH = re.compile(r"(?<![\w/.~\-])~?/(?:[^\s/'\",;:()\[\]<>|]+/)*[^\s/'\",;:()\[\]<>|]+/?")
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
URL = re.compile(r"https?://[^\s'\"]+")
SECRET_KEY = re.compile(r"(^|_)(token|secret|password|api_key)$")


def before_after(before: dict | None, after: dict) -> dict:
    """The groups of results of a run from the `numbers` of two evaluations of the same data.

    Args:
        before (`dict`, *optional*): `PairEvaluation.numbers` of the model that the run started from.
        after (`dict`): Those of the result.

    Returns:
        `dict`: `retrieval`, `similarity` and `zero_shot` as in a run.
    """
    sides = dict(zip(SIDES, (before, after), strict=True))
    sides = {side: numbers for side, numbers in sides.items() if numbers is not None}

    def group(*keys: str) -> dict:
        found = {}
        for side, numbers in sides.items():
            for key in keys:
                numbers = numbers.get(key, {})
            if numbers:
                found[side] = numbers
        return found

    zero_shot = {name: group("zero_shot", name) for name in after.get("zero_shot", {})}
    return {"retrieval": group("retrieval"), "similarity": group("similarity"), "zero_shot": zero_shot}


def publishable(value: Any) -> Any:
    """Copy of a run without what must not be published: access tokens, folders of this machine, empty values.

    An absolute path keeps its last part only. Keys that name a secret are dropped, and so are `None`, empty containers
    and empty strings.
    """
    if isinstance(value, dict):
        kept = {key: publishable(item) for key, item in value.items() if not SECRET_KEY.search(str(key).lower())}
        return {key: item for key, item in kept.items() if not _is_empty(item)}
    if isinstance(value, list | tuple):
        return [item for item in map(publishable, value) if not _is_empty(item)]
    return _without_secrets(value) if isinstance(value, str) else value


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | dict | list) and not value)


def _without_secrets(text: str) -> str:
    text = ACCESS_TOKEN.sub("", text).replace("file://", "")
    text = URL.sub(lambda match: public_address(match.group()), text)
    if text.startswith("/") and "\n" not in text and text.count("/") > 1:
        return PurePosixPath(text).name if " /" not in text else ABSOLUTE_PATH.sub(_last_part, text)
    return ABSOLUTE_PATH.sub(_last_part, text)


def _last_part(match: re.Match[str]) -> str:
    return PurePosixPath(match.group()).name

"""The results of a run as one plain dict: its layout, and the copy of it that may be published.

```
run = {
  "model_name": "clip-ncu",             # title of the card, name in model-index
  "method": "ncu",                      # "clip", ...
  "method_docs": ["...", ...],          # what the objective of each phase says of itself, in a sentence
  "formulation": "released",            # optional: only for methods that have one
  "base_model": {"name": "openai/clip-vit-base-patch32", "kind": "hub", "revision": "..."},
                                        # kind "hub" (name is a Hub id), "local", or "scratch" (random weights)
  "hub_model_id": "me/clip-ncu",        # optional
  "hub_revision": "v2",                 # optional: branch or tag that it is published on, if not the main one
  "license": "mit",                     # optional: only if known
  "language": "en",                     # optional, or a list
  "data": {"description": "...", "hub_id": "...", "revision": "...", "n_pairs": 10000,
           "noise_share": 0.3, "noise_kind": "hard", "noise_class_column": "class", "noise_seed": 0,
           "noise_chosen": 3000, "noise_mismatched": 2998,      # captions that were made wrong on purpose
           "noise_dropped": True,               # optional: and these pairs were left out
           "subset": {"share": 0.5, "seed": 0, "shards": 288},   # or "count" for "share", "rows" for "shards"
           "augmentation": ["images cropped at random", ...],   # preprocessing of the training pairs
           "eval_description": "...", "eval_hub_id": "...", "eval_revision": "..."},   # all but description optional
  "data_health": {"seen": 10000, "skipped": 3, "reasons": {"truncated": 3}},           # optional
  "hyperparameters": {"forget_ratio": 0.1, ...},
  "paper_hyperparameters": {"forget_ratio": 0.1, ...},   # optional; the card marks where the two differ
  "phases": [{"name": "negative_prompt", "steps": 78, "epochs": 2, "seconds": 31.5}, ...],
  "zero_shot": {"cifar10": {"before": Z, "after": Z}},           # Z, R, P: below
  "retrieval": {"held-out pairs": {"before": R, "after": R}},
  "linear_probe": {"cifar10": {"before": P, "after": P}},
  "paired": [{"group": "zero_shot", "set": "cifar10", "metric": "accuracy", "difference": 0.03, "interval": [..],
              "test": "McNemar...", "p_value": 0.01, "n": 10000}, ...],   # after against before on the same items
  "similarity": {"before": S, "after": S},               # S: ncu_hf.evaluation.similarity.summarise_similarity
  "forget_set": {"before": F, "negative_prompt": F, "after": F},   # F: ncu_hf.evaluation.detection.forget_set_metrics;
                                        # in between by phase, for the outcome of each but the last
  "forget_summary": {...},              # optional: ncu_hf.reporting.forgetting.forget_summary, told without forget_set
  "plots": {"losses": "plots/losses.png", "similarities": "plots/similarities.png"},   # relative to the card
  "prompt": {"folder": "negative_prompt", "length": 8},  # optional: a negative prompt lies beside the model
  "checkpoint": {"phase": "unlearning", "step": 100, "steps": 248, "phase_number": 2, "phases": 2},
                                        # optional: a checkpoint of a run that goes on; its card has no results
  "verification": {"commit": "...", "embedding_digest": "...", "weights_sha256": "...", "max_difference": 0.0,
                   "torch": "...", "transformers": "..."},   # optional: a fresh process loaded it from the Hub
  "card_sha256": "...",                 # of the card that was made of all this; in the file alone
  "command": "accelerate launch recipes/ncu.py ...",     # optional
  "environment": {"torch": "2.13.0", ...},               # optional
  "machine": {"processor": "...", "cores": 8, "gpus": ["..."], "commit": "..."},   # optional: that it was trained on
}
Z = {"accuracy", "top5", "mean_per_class", "interval": {metric: [low, high]}, "n", "n_classes", "primary", "hash"}
R = {"n_images", "n_captions", "image_to_text": {"R@1", "R@5", "R@10", "median_rank", "interval"},
     "text_to_image": ..., "mean_recall", "rsum", "interval"}
P = {"accuracy", "mean_per_class", "interval", "n", "n_classes", "primary", "n_train", "n_validation",
     "regularisation", "features": "projected" or "unprojected"}
```

Each of Z, R and P may have "data", where the set comes from ({"hub_id", "revision", "split", "fingerprint", "note"},
all optional), and "skipped" {reason: n}. Shares (recall, accuracy, precision) lie in [0, 1], intervals are [low, high]
of 95 %; tables show percent. "before" is missing where there is no earlier model (trained from scratch). Every group of
results is optional. A number that is not finite counts as not measured.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any

from ncu_hf.data.files import public_address

SIDES = ("before", "after")
SET_GROUPS = ("zero_shot", "retrieval", "linear_probe")
HELD_OUT = "held-out pairs"  # the retrieval set of a run's own evaluation pairs
# A path starts at a slash that does not continue a word, a URL or a relative path.
ABSOLUTE_PATH = re.compile(r"(?<![\w/.~\-])~?/(?:[^\s/'\",;:()\[\]<>|]+/)*[^\s/'\",;:()\[\]<>|]+/?")
ACCESS_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b")
URL = re.compile(r"https?://[^\s'\"]+")
SECRET_KEY = re.compile(r"(^|_)(token|secret|password|api_key)$")


def before_after(before: dict | None, after: dict) -> dict:
    """The groups of results of a run from what was measured of two models on the same data.

    Args:
        before (`dict`, *optional*): Of the model that the run started from: `{"zero_shot": {set: Z}, "retrieval":
            {set: R}, "linear_probe": {set: P}, "similarity": S}`, see above; each group may be missing.
        after (`dict`): Of the result; its sets are the ones that are told.

    Returns:
        `dict`: the groups that were measured, as in a run.
    """
    models = {"after": after} if before is None else {"before": before, "after": after}
    groups = {}
    for group in SET_GROUPS:
        sets = after.get(group, {})
        groups[group] = {
            name: _sides({side: m.get(group, {}).get(name) for side, m in models.items()}) for name in sets
        }
    groups["similarity"] = _sides({side: model.get("similarity") for side, model in models.items()})
    return {group: found for group, found in groups.items() if found}


def _sides(numbers: dict) -> dict:
    return {side: found for side, found in numbers.items() if found}


def finite(value: Any) -> float | None:
    """`value` as a Python float; `None` if it is no number or not finite."""
    if isinstance(value, bool | str) or value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def publishable(value: Any) -> Any:
    """Copy of a run without what must not be published: access tokens, folders of this machine, empty values.

    An absolute path keeps its last part only, in keys too. Keys that name a secret are dropped, and so are `None`,
    empty containers and strings, numbers that are not finite, and lists that hold one (an interval is whole or not
    there). A character that UTF-8 cannot hold becomes a question mark.
    """
    if isinstance(value, dict):
        return _publishable_dict(value)
    if isinstance(value, list | tuple):
        items = [publishable(item) for item in value]
        if any(isinstance(item, float) and not math.isfinite(item) for item in value):
            return []
        return [item for item in items if not _is_empty(item)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _without_secrets(value) if isinstance(value, str) else value


def _publishable_dict(value: dict) -> dict:
    kept: dict = {}
    for key, item in value.items():
        if SECRET_KEY.search(str(key).lower()) or _is_empty(item := publishable(item)):
            continue
        name = key = _without_secrets(key) or "unnamed" if isinstance(key, str) else key
        number = 1
        while name in kept:  # two folders whose names end alike
            number += 1
            name = f"{key} ({number})"
        kept[name] = item
    return kept


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | dict | list) and not value)


def _without_secrets(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # file names may hold bytes that are no text
    text = ACCESS_TOKEN.sub("", text).replace("file://", "")
    text = URL.sub(lambda match: public_address(match.group()), text)
    if text.startswith("/") and "\n" not in text and text.count("/") > 1:
        return PurePosixPath(text).name if " /" not in text else ABSOLUTE_PATH.sub(_last_part, text)
    return ABSOLUTE_PATH.sub(_last_part, text)


def _last_part(match: re.Match[str]) -> str:
    return PurePosixPath(match.group()).name

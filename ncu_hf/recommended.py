"""Settings of NCU that did better than the paper's, on small models and known noise (docs/evidence.md)."""

from __future__ import annotations

from typing import Any

# The paper's own settings are the defaults of `ncu_hf.config`, and those of the recipes of its data sets.
RECOMMENDED: dict[str, Any] = {
    "formulation": "paper",
    "forget_window": 16,
    "forget_target": "none",
    "negative_rank": 8,
    "plan_weight": 0.3,
    "prompt_learning_rate": 1e-2,
    "freeze_token_embedding": False,
}

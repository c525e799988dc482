"""What the log of a run says about its forget set, where nobody knows which pairs truly do not match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ncu_hf.reporting.results import finite

SETS = ("forget", "retain")
QUANTILES = ("q10", "q50", "q90")
PREFIX = "clean_confidence_"


def forget_summary(
    log_history_by_phase: Mapping[str, Sequence[Mapping]], forget_ratio: float, forget_window: int = 1
) -> dict | None:
    """Clean confidence of the forget set and of the retained pairs, as the last phase that had both logged it.

    Args:
        log_history_by_phase (`Mapping[str, Sequence[Mapping]]`): `trainer.state.log_history` of each phase, in order;
            its lines hold means over the steps since the line before.
        forget_ratio (`float`): P, the share that forms the forget set.
        forget_window (`int`, *optional*, defaults to 1): Batches whose pairs are ranked together.

    Returns:
        `dict`: `phase`; `share`, P; `window`; `n_steps` of the phase; `confidence`: `forget` and `retain`, each with
        the mean confidence of the `first` and `last` line, and the quantiles `q10`, `q50`, `q90` of all pairs in the
        last line. `None` if no phase logged them.
    """
    for phase, history in reversed(log_history_by_phase.items()):
        curves = {name: _curve(history, name) for name in (*SETS, *QUANTILES)}
        if all(curves[name] for name in SETS):
            confidence: dict = {name: {"first": curves[name][0], "last": curves[name][-1]} for name in SETS}
            confidence |= {name: curves[name][-1] for name in QUANTILES if curves[name]}
            steps = max(line.get("step", 0) for line in history)
            chosen = {"share": float(forget_ratio), "window": forget_window}
            return {"phase": phase, **chosen, "n_steps": steps, "confidence": confidence}
    return None


def _curve(history: Sequence[Mapping], name: str) -> list[float]:
    values = (finite(line.get(PREFIX + name)) for line in history)
    return [value for value in values if value is not None]

"""The evidence of a finished run: measured on reference and result, written as JSON, plots and card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CLIPModel

from ncu_hf.assessment import Assessment, assess, assess_forget_set
from ncu_hf.cards import describe_run
from ncu_hf.checkpoint import read_json
from ncu_hf.data import DataHealth, PairSource
from ncu_hf.evaluation import ClipEncoder, EmbeddingCache, EvaluationSet
from ncu_hf.evaluation.outcomes import OUTCOMES_FILE, save_outcomes
from ncu_hf.evaluation.suites import paired_tests
from ncu_hf.loading import load_clip
from ncu_hf.publishing.card import write_results
from ncu_hf.reporting.model_card import write_card
from ncu_hf.reporting.plots import plot_similarities
from ncu_hf.reporting.results import SIDES, before_after, publishable
from ncu_hf.reporting.tables import before_after_table
from ncu_hf.run import Run


class Evidence(NamedTuple):
    """What was measured.

    Attributes:
        assessments (`dict[str, Assessment]`): By side, `before` (not of a model from scratch) and `after`; empty
            without evaluation data, and on all processes but the first.
        forget_sets (`dict[str, dict]`): The same and, in between, by phase for each but the last one, where the
            mismatches of the training pairs are known.
        phases (`list[dict]`): `phase.json` of each phase.
        health (`DataHealth`): Records that could not be used, over all phases.
    """

    assessments: dict[str, Assessment]
    forget_sets: dict[str, dict]
    phases: list[dict]
    health: DataHealth


def collect_evidence(
    run: Run, result: CLIPModel, outcomes: list[Path], sets: list[EvaluationSet], device: torch.device
) -> Evidence:
    """Measure the result beside the reference; a collective.

    Args:
        run (`Run`): The run.
        result (`CLIPModel`): What it made.
        outcomes (`list[Path]`): Folder of each phase's outcome.
        sets (`list[EvaluationSet]`): What to measure on.
        device (`torch.device`): Where to compute.
    """
    assessments, forget_sets = {}, {}
    for name, clip in _models(run, result, outcomes):
        encoder = ClipEncoder(clip, run.reference.processor, device=device, cache=EmbeddingCache())
        if name in SIDES:
            assessments[name] = assess(encoder, sets)
        if isinstance(run.source, PairSource):
            forget_sets[name] = assess_forget_set(
                encoder,
                run.source,
                run.arguments.method,
                batch_size=run.arguments.training.global_batch_size,
                seed=run.arguments.training.seed,
            )
    phases = [read_json(outcome / "phase.json") for outcome in outcomes]
    health = DataHealth(run.arguments.data.max_bad_fraction)
    health.merge(phase["data_health"] for phase in phases)
    return Evidence(
        {side: found for side, found in assessments.items() if found is not None},
        {side: found for side, found in forget_sets.items() if found is not None},
        phases,
        health,
    )


def _models(run: Run, result: CLIPModel, outcomes: list[Path]) -> Iterator[tuple[str, CLIPModel]]:
    """What is measured, one model in memory at a time: the reference, the outcomes of the phases, the result.

    The outcome of the last phase is the result. Outcomes in between only tell how well the forget set is found.
    """
    if run.arguments.model.model is not None:
        yield "before", load_clip(run.reference.source, run.reference.revision)
    if isinstance(run.source, PairSource) and run.source[0].mismatched is not None:
        for outcome in outcomes[:-1]:
            yield read_json(outcome / "phase.json")["name"], load_clip(outcome)
    yield "after", result


def write_evidence(run: Run, evidence: Evidence) -> dict[str, Any]:
    """Write `results.json`, `outcomes.safetensors`, `data_health.json`, `plots/` and the card; returns the results."""
    folder = run.workspace.folder
    if evidence.assessments:
        measured = {side: assessment.measured for side, assessment in evidence.assessments.items()}
        save_outcomes(folder / OUTCOMES_FILE, measured)
    results = _results(run, evidence)
    evidence.health.save(folder / "data_health.json")
    write_card(results, folder)
    write_results(folder, publishable(results))
    return results


def summary(results: dict[str, Any], health: DataHealth) -> str:
    """What a run prints at its end: the table, and the records that could not be used if there were any."""
    parts = [before_after_table(results)]
    if health.skipped or health.problems:
        parts.append(health.summary_table())
    return "\n\n".join(part for part in parts if part)


def _results(run: Run, evidence: Evidence) -> dict[str, Any]:
    """All of it as plain values, see `ncu_hf.reporting.results`."""
    numbers = {side: assessment.numbers for side, assessment in evidence.assessments.items()}
    results = describe_run(run, evidence.phases, evidence.health, run.workspace.folder)
    if numbers:
        results |= before_after(numbers.get("before"), numbers["after"])
    if len(numbers) == 2:
        before, after = (evidence.assessments[side].measured for side in SIDES)
        results["paired"] = [test for pair in zip(before, after, strict=True) for test in paired_tests(*pair)]
    results["forget_set"] = evidence.forget_sets
    results["plots"] |= _draw_similarities(run, evidence)
    return results


def _draw_similarities(run: Run, evidence: Evidence) -> dict[str, str]:
    sides = {side: assessment.distributions for side, assessment in evidence.assessments.items()}
    if not sides.get("after"):
        return {}
    path = plot_similarities(sides.get("before"), sides["after"], run.workspace.plots / "similarities.png")
    return {"similarities": str(path.relative_to(run.workspace.folder))}

"""Any number of CLIPs on any number of sets: measured one after the other, then compared item by item."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from ncu_hf.distributed import local_first, world
from ncu_hf.environment import command, environment
from ncu_hf.errors import InputError, one_of
from ncu_hf.evaluation import ClipEncoder, EmbeddingCache, EvaluationSet, LabelledSet, Measurement, measure
from ncu_hf.evaluation.linear_probe import FEATURES
from ncu_hf.evaluation.sets.check import check_usable
from ncu_hf.evaluation.sets.open import open_suite
from ncu_hf.evaluation.sets.pair_columns import Pairs
from ncu_hf.evaluation.suites import measure_linear_probe, paired_tests
from ncu_hf.loading import load_model
from ncu_hf.reporting.comparison import one_measurement
from ncu_hf.reporting.published import NOT_A_SET, published_numbers

logger = logging.getLogger(__name__)

PROBE_SUITE = "probe"
# Of a collective. While the first process fetches sets or fits a probe, the others wait in one; by default the run
# would be ended after 10 minutes (NCCL) or 30 (gloo). Of a process that dies they hear at once, from the launcher.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class ComparisonSettings:
    """What to compare, and how.

    Attributes:
        models (`list[str]`): Folders or Hub ids, `id@revision` for one that is not the newest. Differences are taken
            to the first.
        suite (`list[str]`): Suites (`paper`, `retrieval`, `probe`), sets by name, Hub ids, or paths; see `open_suite`.
        probe (`bool`): Also train a linear probe on each labelled set.
        probe_features (`str`): See `measure_linear_probe`.
        paper_metrics (`bool`): Plain accuracy is the primary metric of every set.
        per_class (`bool`): Add accuracy of each class and the most frequent confusions.
        against (`str`, *optional*): Published numbers to set beside, see `published_numbers`.
        image_column, caption_column (`str`, *optional*): Of sets that are tables of pairs.
        image_root (`str`, *optional*): Folder that relative image paths start from; by default that of the file.
        batch_size (`int`): Images or texts a forward pass.
        workers (`int`, *optional*): Processes that decode images; by default 8 on a GPU, or as many as there are cores
            for it, and none on a CPU, whose cores the model needs.
        use_cache (`bool`): Keep embeddings, and use those that are kept.
        use_cpu (`bool`): Compute on the CPU even where there is a GPU.
        similarities (`bool`): Similarities are wanted, so at least one set must have captions.
    """

    models: list[str]
    suite: list[str]
    probe: bool = False
    probe_features: str = FEATURES[0]
    paper_metrics: bool = False
    per_class: bool = False
    against: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    image_root: str | None = None
    batch_size: int = 256
    workers: int | None = None
    use_cache: bool = True
    use_cpu: bool = False
    similarities: bool = False

    def __post_init__(self):
        one_of("--probe_features", self.probe_features, FEATURES)
        if self.batch_size < 1:
            raise InputError(f"--batch_size must be at least 1, got {self.batch_size}.")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"--workers must not be negative, got {self.workers}.")


class Comparison(NamedTuple):
    """What was measured.

    Attributes:
        numbers (`dict`): Plain values, as in the JSON file.
        distributions (`dict[str, dict[str, dict[str, Tensor]]]`): Similarities by model and captioned set.
    """

    numbers: dict[str, Any]
    distributions: dict[str, dict[str, dict[str, Tensor]]]


class ModelSource(NamedTuple):
    """A model that the user named: short name for tables, folder or Hub id, revision."""

    name: str
    source: str
    revision: str | None


class Task(NamedTuple):
    """One thing to measure: group and name of a set, as in the results, and a call that takes the encoder."""

    group: str
    set: str
    measure: Callable[[ClipEncoder], Measurement | None]


def compare(settings: ComparisonSettings) -> Comparison | None:
    """Measure every model on every set. A collective; `None` on all processes but the first.

    Raises:
        InputError: before anything is encoded, if a model, a set or published numbers cannot be used.
    """
    device = PartialState(cpu=settings.use_cpu, timeout=PATIENCE).device
    published = published_numbers(settings.against) if settings.against else []
    models = model_sources(settings.models)
    for model in models:
        _encoder(model, settings, device)  # what cannot be used is told before hours are spent on another model
    with local_first():
        tasks = list(_tasks(settings))
    _warn_unpublished(published, tasks)
    measured, described = {}, []
    for model in models:
        encoder = _encoder(model, settings, device)
        described.append(model._asdict() | {"weights_sha256": encoder.model_digest})
        measured[model.name] = [_measure(encoder, model, task) for task in tasks]
    if world()[0] != 0:
        return None
    return Comparison(
        {
            "models": described,
            "results": {name: _results(found) for name, found in measured.items()},
            "paired": list(_paired(measured)),
            "published": published,
            "settings": _public(settings),
            "environment": environment(),
            "command": command(),
        },
        {
            name: {one.name: one.distributions for one in found if one.distributions is not None}
            for name, found in measured.items()
        },
    )


def model_sources(specs: list[str]) -> list[ModelSource]:
    """Short and different names for the models: the last parts of a folder, a Hub id as it is.

    Raises:
        InputError: none, or one of them twice.
    """
    if not specs:
        raise InputError("--models: name at least one model.")
    for spec in specs:
        if not Path(spec).is_dir() and Path(spec.partition("@")[0]).is_dir():
            raise InputError(f"--models {spec}: is a folder on this machine; a revision is for a model of the Hub.")
    places = [str(Path(spec).resolve()) if Path(spec).is_dir() else spec for spec in specs]
    if len(set(places)) < len(places):
        raise InputError(f"--models: {next(place for place in places if places.count(place) > 1)} is named twice.")
    paths = {spec: Path(spec).resolve().parts for spec in specs if Path(spec).is_dir()}
    names = [_shortest_name(paths, spec) if spec in paths else spec for spec in specs]
    sources = []
    for name, spec in zip(names, specs, strict=True):
        source, _, revision = (spec, "", "") if Path(spec).is_dir() else spec.partition("@")
        sources.append(ModelSource(name, source, revision or None))
    return sources


def _shortest_name(paths: dict[str, tuple[str, ...]], spec: str) -> str:
    """As many of the last parts of a folder's path as tell it from the other folders."""
    parts = paths[spec]
    others = [path for path in paths.values() if path != parts]
    count = next(n for n in range(1, len(parts) + 1) if all(path[-n:] != parts[-n:] for path in others))
    return "/".join(parts[-count:]).lstrip("/")


def _tasks(settings: ComparisonSettings) -> Iterator[Task]:
    """What is asked for, sets opened."""
    stored = Pairs(settings.image_column, settings.caption_column, settings.image_root)
    named = [spec for spec in settings.suite if spec.lower() != PROBE_SUITE]
    sets = open_suite(named, stored) if named else []
    for one in sets:
        check_usable(one)
    for one in sets:
        labelled = isinstance(one, LabelledSet)
        options = {"paper_metrics": settings.paper_metrics, "per_class": settings.per_class} if labelled else {}
        group = "zero_shot" if labelled else "retrieval"
        yield Task(group, one.origin.name, partial(measure, evaluation_set=one, **options))
    if settings.similarities and all(isinstance(one, LabelledSet) for one in sets):
        raise InputError("--similarity_plot: none of the sets has captions; name one in --suite.")
    probed: list[EvaluationSet] = [one for one in sets if settings.probe and isinstance(one, LabelledSet)]
    if len(named) < len(settings.suite):
        known = {one.origin.fingerprint for one in probed}
        probed += [one for one in open_suite([PROBE_SUITE], stored) if one.origin.fingerprint not in known]
    if settings.probe and not probed:
        raise InputError("--probe: none of the sets has labels; name a labelled set, or --suite probe.")
    for one in probed:
        options = {"features": settings.probe_features, "paper_metrics": settings.paper_metrics}
        yield Task("linear_probe", one.origin.name, partial(measure_linear_probe, labelled=one, **options))


def _warn_unpublished(published: list[dict[str, Any]], tasks: list[Task]) -> None:
    """Say so if none of the published numbers will stand beside one of ours."""
    known = [(one["group"], one["set"]) for one in published if one["set"] not in NOT_A_SET]
    if published and not {(task.group, task.set) for task in tasks}.intersection(known):
        names = ", ".join(dict.fromkeys(name for _, name in known))
        logger.warning("--against: no number is published for the sets of --suite, only for %s.", names)


def _encoder(model: ModelSource, settings: ComparisonSettings, device: torch.device) -> ClipEncoder:
    with local_first():
        loaded = load_model(model.source, model.revision, flag="--models")
    workers = settings.workers
    if workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if device.type == "cpu" else min(8, max(cores - 1, 1))
    return ClipEncoder(
        loaded.clip,
        loaded.processor,
        device=device,
        batch_size=settings.batch_size,
        workers=workers,
        cache=EmbeddingCache() if settings.use_cache else None,
    )


def _measure(encoder: ClipEncoder, model: ModelSource, task: Task) -> Measurement | None:
    name = f"{task.set}, linear probe" if task.group == "linear_probe" else task.set
    logger.info("%s on %s ...", model.name, name)
    found = task.measure(encoder)
    if found is not None:
        logger.info("%s on %s: %s", model.name, name, one_measurement(found.group, found.numbers))
    return found


def _results(measured: list[Measurement]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for one in measured:
        groups.setdefault(one.group, {})[one.name] = one.numbers
        if one.distributions is not None:
            groups.setdefault("similarity", {})[one.name] = one.similarity
    return groups


def _paired(measured: dict[str, list[Measurement]]) -> Iterator[dict[str, Any]]:
    """Tests of each model against the first, on the same items."""
    (baseline, first), *others = measured.items()
    for model, found in others:
        for ours, theirs in zip(found, first, strict=True):
            for test in paired_tests(theirs, ours):
                yield test | {"baseline": baseline, "model": model}


def _public(settings: ComparisonSettings) -> dict[str, Any]:
    return {key: value for key, value in asdict(settings).items() if key not in ("models", "use_cache", "workers")}

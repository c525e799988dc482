"""What the user names -> sets to evaluate on. `open_set` and `open_suite` are the ways in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ncu_hf.data import open_pairs
from ncu_hf.data.files import expand
from ncu_hf.data.sources.locate import is_url, locate
from ncu_hf.errors import InputError, nearest
from ncu_hf.evaluation.sets.base import EvaluationSet, LabelledSet
from ncu_hf.evaluation.sets.captioned import captioned_set
from ncu_hf.evaluation.sets.labelled_folder import find_labels, open_labelled_folder
from ncu_hf.evaluation.sets.labels_file import LABELS_FILE
from ncu_hf.evaluation.sets.pair_columns import Pairs
from ncu_hf.evaluation.sets.registry import BENCHMARK_SETS, SUITES, BenchmarkSet, benchmark_of_repo
from ncu_hf.evaluation.sets.webdataset import Place, is_webdataset, open_webdataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What a specification stands for; nothing is opened yet.

    Args:
        spec (`str`): As given; files are found by it.
        hub_id, revision (`str`, *optional*): Of a data set on the Hub; files here if not given.
        benchmark (`BenchmarkSet`, *optional*): The set of the paper that it is, or is a copy of.
    """

    spec: str
    hub_id: str | None = None
    revision: str | None = None
    benchmark: BenchmarkSet | None = None

    @property
    def identity(self) -> tuple[str | None, ...]:
        """`tuple`: Equal for two specifications of one set."""
        name = self.benchmark.name if self.benchmark else None
        return self.hub_id or os.path.abspath(os.path.expanduser(self.spec)), self.revision, name


def open_set(
    spec: str, pairs: Pairs | None = None, *, revision: str | None = None, name: str | None = None
) -> EvaluationSet:
    """Open a set to evaluate on.

    Args:
        spec (`str`): A name of [`BENCHMARK_SETS`]; a folder with `labels.csv` and class names, or its `labels.csv`
            ([`open_labelled_folder`]); a folder in the layout of `clip-benchmark/wds_*` ([`open_webdataset`]);
            image-text pairs that `open_pairs` opens; or the id of a data set on the Hub in that layout. Names and ids
            take a revision: `food101@main`. A name goes before a folder that is called so; write `./food101` for that.
        pairs (`Pairs`, *optional*): How image-text pairs are stored; by default with columns `image` and `caption`,
            else those of training data.
        revision (`str`, *optional*): Branch, tag or commit on the Hub. The commit is recorded.
        name (`str`, *optional*): Name in tables.

    Returns:
        `LabelledSet` or `CaptionedSet`.

    Raises:
        InputError: nothing there, or what is there cannot be used.
    """
    if spec.lower() in SUITES:
        raise InputError(f"{spec!r} is a suite of {len(SUITES[spec.lower()])} sets; name one of them.")
    return _open(find(spec, revision), pairs or Pairs(), name)


def open_suite(specs: Iterable[str], pairs: Pairs | None = None) -> list[EvaluationSet]:
    """Open several sets: names of [`SUITES`], and whatever [`open_set`] takes.

    What is wrong with a name or with files here shows before anything is downloaded. A set that is named twice is
    opened once; two sets of one name get numbers.

    Args:
        specs (`Iterable[str]`): As of [`open_set`].
        pairs (`Pairs`, *optional*): How image-text pairs are stored.

    Returns:
        `list`: In the order in which they are named; their names differ.
    """
    pairs = pairs or Pairs()
    targets = find_suite(specs)
    opened = {
        target.identity: _open(target, pairs)
        for target in sorted(targets, key=lambda target: target.hub_id is not None)
    }
    return _unique([opened[target.identity] for target in targets])


def find_suite(specs: Iterable[str]) -> list[Target]:
    """What several specifications stand for, suites expanded, each set once. Does not use the network.

    Raises:
        InputError: see [`find`].
    """
    names = [name for spec in specs for name in SUITES.get(spec.lower(), [spec])]
    return list({target.identity: target for target in map(find, names)}.values())


def find(spec: str, revision: str | None = None) -> Target:
    """What a specification stands for. Does not use the network.

    Raises:
        InputError: no set, file or folder, and not the id of a data set either.
    """
    if is_url(spec):
        raise InputError(f"{spec}: a set is read from files here or from the Hub; download it, and name the file.")
    name, _, asked = spec.partition("@")
    if (benchmark := BENCHMARK_SETS.get(name.lower())) is not None:
        if os.path.exists(spec):
            logger.warning("%r is the set of that name, not the folder here; write ./%s for that.", spec, spec)
        return Target(spec, benchmark.hub_id, _revision(spec, asked, revision), benchmark)
    if paths := expand(spec):
        if revision is not None:
            raise InputError(f"{spec} is on this machine; the revision {revision!r} is for a data set of the Hub.")
        return Target(spec, benchmark=benchmark_of_repo(paths[0].name) if is_webdataset(paths[0]) else None)
    if "/" not in name:
        known = [*BENCHMARK_SETS, *SUITES]
        raise InputError(
            f"{spec!r}: no set, suite, file or folder, nor an id owner/name of the Hub.{nearest(name.lower(), known)} "
            f"Known: {', '.join(known)}."
        )
    locate(name, None)  # raises for what can only be a path
    return Target(spec, name, _revision(spec, asked, revision), benchmark_of_repo(name))


def _revision(spec: str, asked: str, revision: str | None) -> str | None:
    if asked and revision not in (None, asked):
        raise InputError(f"{spec}: names the revision {asked!r}, but {revision!r} is given too.")
    return asked or revision


def _open(target: Target, pairs: Pairs, name: str | None = None) -> EvaluationSet:
    benchmark = target.benchmark
    known = name or (benchmark.name if benchmark else None)
    if target.hub_id is not None:
        place = Place.on_hub(target.hub_id, target.revision, known or target.hub_id.rpartition("/")[2])
        found = open_webdataset(place, benchmark.captions_per_image if benchmark else None)
    else:
        found = _open_files(target.spec, pairs, known)
    return found if benchmark is None else _as_benchmark(found, benchmark)


def _open_files(spec: str, pairs: Pairs, name: str | None) -> EvaluationSet:
    paths = expand(spec)
    path = paths[0]
    if len(paths) == 1 and path.is_dir():
        if is_webdataset(path):
            return open_webdataset(Place(path, name or path.absolute().name))
        if (labels := find_labels(path)) is not None:
            return open_labelled_folder(labels, name)
    elif len(paths) == 1 and (path.name == LABELS_FILE or pairs.are_labels(path)):
        return open_labelled_folder(path, name)
    try:
        locate(spec, None)
    except InputError as error:
        raise InputError(
            f"{spec}: neither {LABELS_FILE}, nor the layout of clip-benchmark, nor pairs in one format (csv, tsv, "
            "parquet, tar, or a folder of images with captions). Name the set's folder, or its files: 'folder/*.tar'."
        ) from error
    return captioned_set(open_pairs(spec, streaming=False, **pairs.options(path)), name=name)


def _as_benchmark(found: EvaluationSet, benchmark: BenchmarkSet) -> EvaluationSet:
    """A set with what is known of it: its primary metric, cautions, and in what this copy differs."""
    differences = benchmark.differences(found)
    if differences:
        logger.warning(
            "%s: this copy has %s; its numbers do not compare with published ones.",
            found.origin.name,
            ", ".join(differences),
        )
    notes = [found.origin.note, benchmark.caution, f"this copy has {', '.join(differences)}" if differences else None]
    origin = replace(found.origin, note="; ".join(note for note in notes if note) or None)
    if isinstance(found, LabelledSet):
        return replace(found, origin=origin, primary=benchmark.primary)
    return replace(found, origin=origin)


def _unique(sets: list[EvaluationSet]) -> list[EvaluationSet]:
    """The same sets; the second of a name gets `-2` behind it."""
    taken: set[str] = set()
    named = []
    for found in sets:
        name, number = found.origin.name, 2
        while name in taken:
            name, number = f"{found.origin.name}-{number}", number + 1
        taken.add(name)
        named.append(replace(found, origin=replace(found.origin, name=name)))
    return named

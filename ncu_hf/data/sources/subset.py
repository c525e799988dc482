"""A random part of a data set, for studies of how much data a method needs: the same one for the same seed."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ncu_hf.data.files import fingerprint_text
from ncu_hf.data.order import SUBSET, keyed_generator
from ncu_hf.data.records import PairSource
from ncu_hf.data.shards.base import BEGINNING
from ncu_hf.data.sources.stream_source import Part, StreamSource
from ncu_hf.data.sources.views import ChosenRecords
from ncu_hf.errors import InputError

logger = logging.getLogger(__name__)

_COUNT = re.compile(r"\d[\d_]*|\d{1,3}(,\d{3})+")
_SHARE = re.compile(r"(\d*\.\d+|\d+\.?)(e-?\d+)?(%?)", re.IGNORECASE)
# Where lengths are not known, whole shards are taken if that misses the wanted number by no more than this share.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Subset:
    """How many pairs to take, and which ones.

    Args:
        share (`float`, *optional*): Of all pairs, in (0, 1].
        count (`int`, *optional*): Number of pairs; one of the two is given.
        seed (`int`): Seed of the choice.
    """

    share: float | None
    count: int | None
    seed: int

    @classmethod
    def parse(cls, text: str, seed: int) -> Subset:
        """From what the user writes: `0.5` and `50%` are shares, `500000` and `500,000` are counts.

        Raises:
            InputError: neither of them, or out of range.
        """
        text = str(text).strip()
        if seed < 0:
            raise InputError(f"--subset_seed must not be negative, got {seed}.")
        if _COUNT.fullmatch(text) and (count := int(re.sub("[_,]", "", text))) >= 1:
            return cls(None, count, seed)
        match = _SHARE.fullmatch(text)
        share = float(text.rstrip("%")) / (100 if match[3] else 1) if match else 0.0
        if not 0 < share <= 1:
            raise InputError(
                f"--train_subset {text}: give a share above 0 and up to 1 with a point or a percent sign (0.5, 50%), "
                "or a whole number of pairs (500000)."
            )
        return cls(share, None, seed)

    @property
    def told(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: for the fingerprint."""
        return "subset", str(self.share), str(self.count), str(self.seed)

    def wanted(self, rows: float) -> float:
        """Number of pairs to take of `rows`."""
        return self.share * rows if self.count is None else self.count

    def described(self, **chosen: Any) -> dict[str, Any]:
        """What a model card prints."""
        asked = {"share": self.share} if self.count is None else {"count": self.count}
        return {**asked, "seed": self.seed, **chosen}


def take_subset(source: PairSource, subset: Subset) -> PairSource:
    """A subset of an indexable source, of the exact size, in stored order.

    Raises:
        InputError: the source has fewer pairs.
    """
    count = max(round(subset.wanted(len(source))), 1)
    _check(source.name, count, len(source))
    chosen = keyed_generator(subset.seed, SUBSET).permutation(len(source))[:count]
    chosen.sort()
    return ChosenRecords(source, chosen, subset.told, subset.described(rows=count))


def take_subset_of_stream(source: StreamSource, subset: Subset) -> StreamSource:
    """A subset of a stream: shards in random order until there are enough pairs, so that the others are never touched.

    The last shard is cut. Where the lengths are known the number of pairs is exact; else it goes by the estimates of
    [`StreamSource.estimated_rows`], and the last shard is only cut (and counted for it) if it would miss the wanted
    number by more than 1 % as a whole or not at all.

    Raises:
        InputError: the source has fewer pairs, exactly or as it is stated.
    """
    rows = [source.estimated_rows(i) for i in range(len(source.shards))]
    wanted = max(subset.wanted(sum(rows)), 1)
    exact = source.rows is not None
    if exact:
        wanted = round(wanted)
        _check(source.name, wanted, sum(rows))
    elif wanted > sum(rows):
        _check_estimated(source, wanted, sum(rows))
    parts = _parts(source, subset, rows, wanted)
    chosen = StreamSource(
        source.shards,
        name=source.name,
        format=source.format,
        fingerprint=fingerprint_text(source.fingerprint, *subset.told),
        revision=source.revision,
        parts=parts,
        total_rows=source.total_rows,
        first_rows=source.first_rows,
        subset=subset.described(shards=len(parts)),
    )
    chosen.problems += source.problems
    logger.info(
        "Subset: %d of %d shards, %s%d pairs.",
        len(parts),
        len(source.shards),
        "" if exact else "about ",
        round(sum(rows[shard] if stop is None else stop for shard, _, stop in parts)),
    )
    return chosen


def _parts(source: StreamSource, subset: Subset, rows: list[float], wanted: float) -> list[Part]:
    parts: list[Part] = []
    taken = 0.0  # a sum of integers where the lengths are known
    for shard in keyed_generator(subset.seed, SUBSET).permutation(len(rows)).tolist():
        left = wanted - taken
        known = source.shards[shard].rows is not None
        if left <= 0 or (parts and not known and left <= _TOLERANCE * wanted):
            break
        if rows[shard] - left > (0 if known else _TOLERANCE * wanted):
            length = source.shards[shard].count(BEGINNING, source.problems)
            stop = min(max(round(left), 1), length)
            parts.append((shard, 0, stop))
            break
        if rows[shard]:
            parts.append((shard, 0, None))
            taken += rows[shard]
    return sorted(parts, key=itemgetter(0))


def _check(name: str, wanted: float, rows: float) -> None:
    if wanted > rows:
        raise InputError(f"{name}: --train_subset asks for {wanted:.0f} pairs, the data has {rows:.0f}. Ask for fewer.")


def _check_estimated(source: StreamSource, wanted: float, rows: float) -> None:
    """The stated length decides. One that is judged by the first shard may be too low: a warning."""
    fault = f"{source.name}: --train_subset asks for {wanted:.0f} pairs, the data has about {rows:.0f}"
    if source.total_rows is not None and wanted > source.total_rows:
        raise InputError(f"{fault}. Ask for fewer, or state with --train_pairs that it has more.")
    logger.warning("%s, as its first shard lets expect; all of it is taken.", fault)

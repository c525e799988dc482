"""Batches that bring other pairs along: the right ones, once each, as evaluation sees them."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPProcessor

from ncu_hf.data import (
    ImageTransform,
    Located,
    PairCollator,
    PairLoader,
    PairSource,
    PartneredCollator,
    Record,
    decode_image,
    open_pairs,
)
from ncu_hf.errors import InputError

ROWS = 96


@pytest.fixture(scope="module")
def processor(clip_folder) -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def pairs(scenes) -> PairSource:
    return open_pairs(str(scenes), image_column="image", caption_column="caption")


class Changed(PairSource):
    """A source in which one record is replaced."""

    def __init__(self, source: PairSource, row: int, record: Record):
        self._source, self._row, self._record = source, row, record
        self.name, self.format, self.fingerprint, self.problems = "changed", source.format, source.fingerprint, []

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return self._record if index == self._row else self._source[index]

    def shard_of(self, index: int) -> str:
        return "shard"


def loader(source: PairSource, processor: CLIPProcessor, partners: torch.Tensor, **options) -> PairLoader:
    collator = PairCollator(
        processor.tokenizer, ImageTransform(processor.image_processor, train=True), context_length=32
    )
    plain = ImageTransform(processor.image_processor, train=False)
    settings = {"batch_size": 8, "rank": 0, "world_size": 1, "seed": 3, "epochs": 1, **options}
    return PairLoader(source, PartneredCollator(collator, source, plain, partners), **settings)


def drawn() -> torch.Tensor:
    """Partners out of ten rows, so that many are shared."""
    return torch.randint(40, 50, (ROWS, 2), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pair_finds_its_partners_as_evaluation_sees_them(pairs, processor, workers):
    partners, plain, seen = drawn(), ImageTransform(processor.image_processor, train=False), []
    for batch in loader(pairs, processor, partners, num_workers=workers):
        seen += batch["indices"].tolist()
        assert [pairs[row].key for row in batch["indices"].tolist()] == batch["keys"]
        wanted, places = partners[batch["indices"]], batch["partner_places"]
        assert places.shape == wanted.shape
        assert len(batch["partners"]["input_ids"]) == len(wanted.unique())  # each once
        for place, row in zip(places.flatten().tolist(), wanted.flatten().tolist(), strict=True):
            assert batch["partners"]["pixel_values"][place].equal(plain(decode_image(pairs[row].image)))
            ids = processor.tokenizer(pairs[row].caption)["input_ids"]
            assert batch["partners"]["input_ids"][place, : len(ids)].tolist() == ids
    assert sorted(seen) == list(range(ROWS))


def test_the_batch_itself_stays_what_it_is(pairs, processor):
    alone = loader(pairs, processor, drawn())
    plain = PairLoader(pairs, alone._batches._collator._collator, batch_size=8, rank=0, world_size=1, seed=3, epochs=1)
    for found, expected in zip(alone, plain, strict=True):
        assert found["pixel_values"].equal(expected["pixel_values"]) and found["indices"].equal(expected["indices"])
        assert set(found) - set(expected) == {"partners", "partner_places"}


def test_a_batch_without_a_usable_pair_has_no_partner(pairs, processor):
    empty = [Located(Record("k", None, "a"), "s", 0, (i,), i) for i in range(3)]
    batch = loader(pairs, processor, drawn())._batches._collator(empty, seed=0)
    assert batch["partner_places"].shape == (0, 2) and batch["indices"].shape == (0,)
    assert batch["partners"]["pixel_values"].shape == (0, *batch["pixel_values"].shape[1:])
    assert len(batch["partners"]["input_ids"]) == 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("record", [Record("gone", b"no image", "a"), Record("gone", None, "a", fault="truncated")])
def test_a_partner_that_can_no_longer_be_read_stops_the_run(pairs, processor, record, workers):
    partners = torch.full((ROWS, 2), 45)
    with pytest.raises(InputError, match="changed: pair 'gone' cannot be read any longer"):
        for _ in loader(Changed(pairs, 45, record), processor, partners, num_workers=workers):
            pass


def test_pairs_of_a_stream_have_no_index(scenes, processor):
    source = open_pairs(str(scenes), image_column="image", caption_column="caption", streaming=True)
    collator = PairCollator(processor.tokenizer, ImageTransform(processor.image_processor, True), context_length=32)
    batch = next(iter(PairLoader(source, collator, batch_size=4, rank=0, world_size=1, seed=0)))
    assert "indices" not in batch and len(batch["keys"]) == 4

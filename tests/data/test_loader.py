from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from io import BytesIO
from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.loader import PairLoader
from ncu_hf.data.records import PairSource, Record
from ncu_hf.data.sources import open_pairs
from ncu_hf.data.streaming import StreamSource
from ncu_hf.data.transforms import ImageTransform
from ncu_hf.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class ListSource(PairSource):
    """Records in memory; those in `bad` cannot be decoded, that in `fault` raises."""

    name, format, fingerprint = "list", "csv", "0"

    def __init__(self, rows: int, bad: tuple[int, ...] = (), fault: int | None = None):
        self.problems, self.fault, self.reads = [], fault, []
        self.images = [b"no image" if i in bad else png(i) for i in range(rows)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        self.reads.append(index)
        if index == self.fault:
            raise RuntimeError("the disk is gone")
        return Record(str(index), self.images[index], f"{LETTERS[index % 26]} dog runs", index % 3 == 0)

    def shard_of(self, index: int) -> str:
        return f"shard-{index // 10}"


@pytest.fixture(scope="module")
def collator() -> PairCollator:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transform = ImageTransform(processor, train=True)
    return PairCollator(tokenizer, transform, context_length=16, augment_negative_captions=True)


def take(source, collator, batches: int, **options) -> list[dict]:
    options = {"batch_size": 6, "rank": 0, "world_size": 1, "seed": 5, **options}
    return list(islice(PairLoader(source, collator, **options), batches))


def check_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def rows(batch: dict) -> dict[str, tuple]:
    """key -> everything that training would see of it. Padding depends on the batch, so ids are cut at their end."""
    result = {}
    for i, key in enumerate(batch["keys"]):
        ids = [batch[name][i].tolist() for name in ("input_ids", "negative_input_ids")]
        ids = [row[: row.index(53) + 1] for row in ids]
        result[key] = (batch["pixel_values"][i].numpy().tobytes(), *map(tuple, ids))
    return result


def test_an_epoch_is_a_permutation_less_the_tail_and_the_next_one_another(collator):
    source = ListSource(32)
    loader = PairLoader(source, collator, batch_size=6, rank=0, world_size=1, seed=5)
    assert (loader.batches_per_epoch, loader.tail_dropped) == (5, 2)
    batches = list(islice(loader, 10))
    assert [batch["epoch"] for batch in batches] == [0] * 5 + [1] * 5
    epochs = [[key for batch in part for key in batch["keys"]] for part in (batches[:5], batches[5:])]
    for keys in epochs:
        assert len(set(keys)) == 30 and set(keys) <= {str(i) for i in range(32)}
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0], key=int)


def test_seed_decides_and_shuffle_can_be_off(collator):
    source = ListSource(24)
    first, again, other = (take(source, collator, 4, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        check_same(one, two)
    assert first[0]["keys"] != other[0]["keys"]
    keys = [key for batch in take(source, collator, 4, shuffle=False) for key in batch["keys"]]
    assert keys == [str(i) for i in range(24)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine with fewer cores
def test_workers_change_nothing(collator, workers, start):
    source = ListSource(32, bad=(3, 17))
    plain = take(source, collator, 12, start_batch=start)
    for one, two in zip(plain, take(source, collator, 12, num_workers=workers, start_batch=start), strict=True):
        check_same(one, two)


@pytest.mark.parametrize("world", [2, 4])
def test_the_number_of_processes_changes_nothing(collator, world):
    source = ListSource(50, bad=(7,))
    whole = take(source, collator, 13, batch_size=8)
    ranks = [take(source, collator, 13, batch_size=8 // world, rank=rank, world_size=world) for rank in range(world)]
    for i, batch in enumerate(whole):
        parts = [rank[i] for rank in ranks]
        assert batch["keys"] == [key for part in parts for key in part["keys"]]
        assert torch.equal(batch["pixel_values"], torch.cat([part["pixel_values"] for part in parts]))
        assert torch.equal(batch["mismatched"], torch.cat([part["mismatched"] for part in parts]))
        assert rows(batch) == {key: row for part in parts for key, row in rows(part).items()}
        assert batch["skipped"] == [skipped for part in parts for skipped in part["skipped"]]


@pytest.mark.parametrize("start", [1, 5, 13])
def test_resume_is_the_tail_of_the_uninterrupted_run(collator, start):
    source = ListSource(32, bad=(2,))
    whole = take(source, collator, 17)
    for one, two in zip(whole[start:], take(source, collator, 17 - start, start_batch=start), strict=True):
        check_same(one, two)


def test_resume_reads_nothing_of_what_was_consumed(collator):
    source = ListSource(32)
    batch = take(source, collator, 1, start_batch=1_000_003)[0]
    assert batch["epoch"] == 200_000
    assert len(source.reads) == 6 and [str(i) for i in source.reads] == batch["keys"]


def test_bad_records_are_never_replaced(collator):
    source = ListSource(30, bad=(4, 5, 6))
    batches = take(source, collator, 5)
    counted = Counter(key for batch in batches for key in batch["keys"])
    counted.update(skipped.key for batch in batches for skipped in batch["skipped"])
    assert counted == {str(i): 1 for i in range(30)}
    skipped = sorted(skipped for batch in batches for skipped in batch["skipped"])
    assert skipped == [(str(i), "shard-0", "undecodable") for i in (4, 5, 6)]


def test_crops_differ_between_epochs(collator):
    batches = take(ListSource(6), collator, 2)
    first, second = rows(batches[0]), rows(batches[1])
    assert first.keys() == second.keys()
    assert all(first[key][0] != second[key][0] for key in first)


def test_data_smaller_than_a_global_batch_is_refused(collator):
    with pytest.raises(InputError, match=r"7 records.*global batch of 8 \(4 x 2"):
        PairLoader(ListSource(7), collator, batch_size=4, rank=0, world_size=2, seed=0)
    PairLoader(ListSource(8), collator, batch_size=4, rank=0, world_size=2, seed=0)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2}, {"seed": -1}, {"start_batch": -1}])
def test_wrong_numbers_are_refused(collator, wrong):
    with pytest.raises(InputError, match="Loader"):
        PairLoader(ListSource(8), collator, **{"batch_size": 2, "rank": 0, "world_size": 2, "seed": 0, **wrong})


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_a_worker_surface(collator, workers):
    with pytest.raises(RuntimeError, match="the disk is gone"):
        take(ListSource(32, fault=20), collator, 5, num_workers=workers)


def test_workers_end_with_their_iterator_and_wait_is_measured(collator):
    before = set(multiprocessing.active_children())
    loader = PairLoader(ListSource(32), collator, batch_size=6, rank=0, world_size=1, seed=5, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2 and loader.last_wait_seconds > 0
    del iterator
    gc.collect()
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(worker.is_alive() for worker in workers)


def test_the_global_random_state_is_left_alone(collator):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    take(ListSource(12), collator, 3, num_workers=1)
    assert torch.equal(torch.rand(3), wanted)


# Streams


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Makes a stream over parquet shards of given numbers of rows; keys are unique."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(*sizes: int):
        number = 0
        for i, size in enumerate(sizes):
            keys = [str(number + j) for j in range(size)]
            number += size
            table = {"key": keys, "image": [png(int(key)) for key in keys], "text": ["a dog"] * size}
            schema = pa.schema({"key": pa.string(), "image": pa.binary(), "text": pa.string()})
            pq.write_table(pa.table(table, schema=schema), tmp_path / f"part-{i}.parquet")
        return open_pairs(str(tmp_path / "*.parquet"), image_column="image", caption_column="text", streaming=True)

    return make


def consumed(source, collator, batches: int, world: int, workers: int, start: int = 0) -> list[list[str]]:
    """Keys of each rank, in order."""
    options = {"batch_size": 2, "world_size": world, "num_workers": workers, "start_batch": start}
    return [
        [key for batch in take(source, collator, batches, rank=rank, **options) for key in batch["keys"]]
        for rank in range(world)
    ]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (1, 2), (2, 2), (1, 3)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_stream_gives_every_record_to_exactly_one_reader(stream, collator, world, workers):
    source = stream(*[6] * 12)
    keys = consumed(source, collator, 36 // world, world, workers)  # 12 equal shards: 72 records, one epoch
    assert Counter(key for rank in keys for key in rank) == {str(i): 1 for i in range(72)}


def test_stream_of_uneven_shards_loses_nothing_over_epochs(stream, collator):
    source = stream(3, 7, 1, 5)
    keys = consumed(source, collator, 24, world=1, workers=0)[0]  # 48 = 3 epochs of 16
    assert Counter(keys) == {str(i): 3 for i in range(16)}
    assert len({tuple(keys[start : start + 16]) for start in (0, 16, 32)}) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4, 9])
def test_stream_resumes_where_it_was(stream, collator, workers, start):
    source = stream(8, 3, 5, 6)
    whole = take(source, collator, 14, batch_size=2, num_workers=workers)
    rest = take(source, collator, 14 - start, batch_size=2, num_workers=workers, start_batch=start)
    for one, two in zip(whole[start:], rest, strict=True):
        check_same(one, two)


def test_stream_needs_a_shard_for_each_process_and_uses_no_more_workers_than_shards(stream, collator):
    source = stream(4, 4, 4)
    options = {"batch_size": 2, "rank": 0, "seed": 0}
    with pytest.raises(InputError, match="3 shards for 4 processes"):
        PairLoader(source, collator, world_size=4, **options)
    loader = PairLoader(source, collator, world_size=2, num_workers=8, **options)
    assert (loader.num_workers, loader.batches_per_epoch, loader.tail_dropped) == (1, None, 0)


def test_stream_ignores_empty_files(stream, collator):
    source = stream(4, 0, 4)
    assert source.shards == ["part-0.parquet", "part-2.parquet"]
    assert len(set(consumed(source, collator, 4, world=1, workers=0)[0])) == 8


class EmptyStream(StreamSource):
    """The second of two shards has no record."""

    def __init__(self):
        self.name, self.shards = "stream", ["full", "empty"]

    def read_shard(self, index: int):
        return iter([Record("a", png(0), "a dog")] * (3 if index == 0 else 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reader_without_any_record_says_so(collator, workers):
    options = {"num_workers": 2} if workers else {"rank": 1, "world_size": 2}
    with pytest.raises(InputError, match=r"^stream: no record in the shards of a reader \(empty\)\.$"):
        take(EmptyStream(), collator, 20, shuffle=False, **options)

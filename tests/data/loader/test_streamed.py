from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice

import pytest

from ncu_hf.data.loader import indexed, reader, streamed
from ncu_hf.data.loader.pair_loader import PairLoader
from ncu_hf.data.records import PairSource, Record, Skipped
from ncu_hf.data.shards.base import Entry, Shard, StoredRow
from ncu_hf.data.sources.stream_source import StreamSource
from ncu_hf.errors import InputError


class MemoryShard(Shard):
    """Rows `name:0`, `name:1`, ...; counts what is read of it. The byte offset of a row is 100 times its number."""

    def __init__(self, name: str, length: int, known: bool, size: int | None):
        self.name, self.length, self.size = name, length, size
        self.rows = length if known else None
        self.reads: list[int] = []
        self.cut: int | None = None

    def read(self, start: Entry, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
        assert start.offset == 100 * start.row and start.row <= first
        for number in range(first, self.length if self.cut is None else self.cut):
            self.reads.append(number)
            record = Record(f"{self.name}:{number}", b"x" * 10, "a dog")
            yield StoredRow(number, record, Entry(number + 1, 100 * (number + 1)))
        if self.cut is not None:
            problems.append(Skipped("", self.name, "truncated_archive"))

    def count(self, start: Entry, problems: list[Skipped]) -> int:
        if self.cut is not None:
            problems.append(Skipped("", self.name, "truncated_archive"))
        return self.length

    def estimate_rows(self) -> float | None:
        return None


class MemoryStream(StreamSource):
    def __init__(self, lengths: list[int], known: bool = False, sizes: list[int | None] | None = None, guess: int = 10):
        sizes = [10 * length for length in lengths] if sizes is None else sizes
        self.shards = [
            MemoryShard(f"s{i}", n, known, size) for i, (n, size) in enumerate(zip(lengths, sizes, strict=True))
        ]
        self.parts = [(i, 0, None) for i in range(len(lengths))]
        self.name, self.fingerprint, self.guess, self.problems = "stream", "f", guess, []

    def estimated_rows(self, shard: int) -> float:
        return self.guess

    @property
    def keys(self) -> set[str]:
        return {f"{shard.name}:{row}" for shard in self.shards for row in range(shard.length)}


class MemorySource(PairSource):
    name, format, fingerprint = "memory", "csv", "f"

    def __init__(self, rows: int):
        self.rows, self.problems = rows, []

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Record:
        return Record(str(index), b"", "a dog")

    def shard_of(self, index: int) -> str:
        return "shard"


def collate(records: list, *, seed: int) -> dict:
    faults = [Skipped(r.record.key, r.shard, r.record.fault) for r in records if r.record.fault]
    keys = [r.record.key for r in records if not r.record.fault]
    return {"keys": keys, "skipped": faults, "epoch": records[0].epoch, "places": [r.position for r in records]}


@pytest.fixture(autouse=True)
def inline_workers(monkeypatch):
    """Workers without processes: hundreds of layouts in a second."""

    def in_turn(make, workers, _pin_memory: bool):
        for items in cycle([make(worker, max(workers, 1)) for worker in range(max(workers, 1))]):
            if (item := next(items, None)) is None:
                return
            yield item

    for module in (indexed, streamed):
        monkeypatch.setattr(module, "in_workers", in_turn)


class Processes:
    """W loaders in W threads, with a gather between them."""

    def __init__(self, world: int):
        self.world, self.barrier, self.values = world, threading.Barrier(world, timeout=20), [None] * world

    def gather(self, rank: int):
        def exchange(value):
            self.values[rank] = json.dumps(value)
            self.barrier.wait()
            found = [json.loads(item) for item in self.values]
            self.barrier.wait()
            return found

        return exchange

    def run(self, work) -> list:
        results, errors = [None] * self.world, []

        def body(rank):
            try:
                results[rank] = work(rank, self.gather(rank))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise (real or errors)[0]
        return results


def consume(source, world=1, workers=0, batch=2, seed=0, epochs=None, state=None, stop=None):
    """Batches of every rank, and the state behind them."""

    def work(rank, gather):
        loader = PairLoader(
            source,
            collate,
            batch_size=batch,
            rank=rank,
            world_size=world,
            seed=seed,
            num_workers=workers,
            state=json.loads(json.dumps(state)),
            epochs=epochs,
            gather=gather,
        )
        batches = list(islice(loader, stop))
        return batches, loader.state_dict()

    results = Processes(world).run(work)
    assert all(saved == results[0][1] for _, saved in results)
    assert len({len(batches) for batches, _ in results}) == 1, "all processes make the same number of steps"
    return [batches for batches, _ in results], results[0][1]


def keys_of(ranks) -> list[str]:
    return [key for batches in ranks for batch in batches for key in batch["keys"]]


def check_epoch(ranks, source, world, batch, epoch=0):
    """Every key at most once, and no more missing than do not fill a global batch."""
    keys = [key for batches in ranks for b in batches if b["epoch"] == epoch for key in b["keys"]]
    assert len(keys) == len(set(keys)) and set(keys) <= source.keys
    assert len(keys) == len(source.keys) - len(source.keys) % (world * batch)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13, 17])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_sample_once_an_epoch(world, shards, known):
    for workers in range(4):
        source = MemoryStream([11 + 3 * (i % 4) for i in range(shards)], known)
        ranks, _ = consume(source, world, workers, epochs=2)
        for epoch in (0, 1):
            check_epoch(ranks, source, world, 2, epoch)


@pytest.mark.parametrize("known", [True, False])
def test_shards_of_very_different_sizes(known):
    lengths = [1, 500, 1, 0, 3, 90, 1]
    for sizes in (None, [10**6, 1, 10**6, 5, 7, 9, 10**6], [None] * 7):
        for world, workers in ((1, 0), (4, 0), (2, 3), (3, 2)):
            source = MemoryStream(lengths, known, sizes)
            ranks, _ = consume(source, world, workers, batch=3, epochs=2)
            for epoch in (0, 1):
                check_epoch(ranks, source, world, 3, epoch)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("known", [True, False])
def test_killed_and_restarted_with_other_numbers(known, seed, monkeypatch):
    """Any chain of stops and restarts gives the same multiset."""
    rng = random.Random(100 * seed + known)
    monkeypatch.setattr(reader, "BLOCK_ROWS", rng.choice([4, 16, 64]))
    monkeypatch.setattr(reader, "LANES", rng.choice([1, 3, 8]))
    for _ in range(6):
        lengths = [rng.choice([0, 1, 7, 20, 40]) for _ in range(rng.randint(1, 12))] + [30]
        source = MemoryStream(lengths, known, None if rng.random() < 0.5 else [rng.randint(1, 99) for _ in lengths])
        keys, state, done = Counter(), None, False
        while not done:
            world, workers, batch = rng.randint(1, 4), rng.randint(0, 3), rng.randint(1, 4)
            stop = None if rng.random() < 0.2 else rng.randint(0, 6)
            if sum(lengths) < world * batch:
                continue
            ranks, state = consume(source, world, workers, batch, seed, epochs=1, state=state, stop=stop)
            keys.update(keys_of(ranks))
            done = len(ranks[0]) < (10**9 if stop is None else stop)
        assert max(keys.values()) == 1
        missing = len(source.keys) - len(keys)
        assert set(keys) <= source.keys and 0 <= missing < world * batch


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 3), (2, 2), (3, 1)])
def test_the_same_layout_goes_on_in_the_same_order(known, world, workers, monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_ROWS", 16)
    source = MemoryStream([9, 21, 4, 16, 13, 30], known)
    whole, _ = consume(source, world, workers, epochs=3)
    for stop in (0, 1, 2, 7, 8, 15, 16, 20):
        head, state = consume(source, world, workers, stop=stop)
        tail, _ = consume(source, world, workers, epochs=3, state=state)
        assert [a + b for a, b in zip(head, tail, strict=True)] == whole


def test_no_worker_and_one_worker_are_the_same_order():
    source = MemoryStream([9, 21, 4, 16])
    assert consume(source, 2, 0, epochs=1)[0] == consume(source, 2, 1, epochs=1)[0]


def test_orders_differ_between_epochs_and_seeds():
    source = MemoryStream([20] * 6, known=True)
    (batches,), _ = consume(source, epochs=2)
    first, second = ([key for b in batches if b["epoch"] == epoch for key in b["keys"]] for epoch in (0, 1))
    assert sorted(first) == sorted(second) and first != second
    assert keys_of(consume(source, epochs=1, seed=1)[0]) != first
    assert keys_of(consume(source, epochs=1)[0]) == first


def test_resume_reads_only_what_is_left_and_one_block(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_ROWS", 16)
    source = MemoryStream([100] * 8, known=True)
    _, state = consume(source, stop=300)  # 600 of 800 rows
    for shard in source.shards:
        shard.reads.clear()
    consume(source, state=state, epochs=1)
    reads = sum(len(shard.reads) for shard in source.shards)
    assert 200 <= reads <= 200 + 16


def test_a_process_opens_no_shard_that_it_does_not_use():
    source = MemoryStream([10] * 8, known=True)
    opened = []
    for rank in range(4):
        for shard in source.shards:
            shard.reads.clear()
        loader = PairLoader(source, collate, batch_size=2, rank=rank, world_size=4, seed=0, epochs=1)
        list(loader)
        opened.append({shard.name for shard in source.shards if shard.reads})
    assert [len(names) for names in opened] == [2, 2, 2, 2] and len(set.union(*opened)) == 8


def test_a_shard_that_became_shorter_costs_its_rows_and_no_step():
    source = MemoryStream([10, 10, 10], known=True)
    source.shards[1].cut = 4
    (batches,), _ = consume(source, epochs=1)
    skipped = [s for batch in batches for s in batch["skipped"]]
    assert len(batches) == 15 and {(s.shard, s.reason) for s in skipped} == {("s1", "missing_row")}
    assert len(skipped) == 6 and len(keys_of([batches])) == 24
    assert [p for batch in batches for p in batch["problems"]] == [Skipped("", "s1", "truncated_archive")]


def test_lengths_are_learned_once():
    source = MemoryStream([10, 20, 30], known=False)
    _, state = consume(source, 2, stop=3)
    assert state["round"]["steps"] is None
    _, state = consume(source, 2, stop=16)  # 60 rows: 15 steps an epoch
    assert state["lengths"] == {"0": 10, "1": 20, "2": 30} and state["epoch"] == 1
    assert state["round"]["steps"] == 15


def test_data_smaller_than_a_batch_is_refused():
    for known in (True, False):
        with pytest.raises(InputError, match=r"5 record\(s\), fewer than one global batch of 6 \(3 x 2"):
            consume(MemoryStream([2, 3], known), world=2, batch=3, epochs=1)


def test_a_state_of_other_data_or_seed_is_refused():
    for source in (MemoryStream([10, 10]), MemorySource(20)):
        _, state = consume(source, stop=2)
        with pytest.raises(InputError, match="other data"):
            consume(source, state={**state, "fingerprint": "g"}, stop=1)
        with pytest.raises(InputError, match="seed 0, not 7"):
            consume(source, state=state, seed=7, stop=1)


def test_indexable_sources_are_elastic_too():
    source = MemorySource(53)
    whole, _ = consume(source, 1, 0, 6, epochs=1)
    order = keys_of(whole)
    first, state = consume(source, 3, 2, 2, stop=4)
    rest, _ = consume(source, 2, 1, 3, epochs=1, state=state)
    merged = [key for step in zip(*first, strict=True) for batch in step for key in batch["keys"]]
    merged += [key for step in zip(*rest, strict=True) for batch in step for key in batch["keys"]]
    assert merged == order[:48]


@pytest.mark.parametrize("guess", [7, 50])
@pytest.mark.parametrize("world", [1, 3])
def test_a_cut_shard_is_always_told(guess, world, monkeypatch):
    """Whether it is met by a reader, over several blocks, or only by the count of what nobody has read."""
    monkeypatch.setattr(reader, "BLOCK_ROWS", 4)
    for cut in (0, 3, 17):
        source = MemoryStream([20, 20, 20], known=False, guess=guess)
        source.shards[1].length = source.shards[1].cut = cut
        ranks, state = consume(source, world, epochs=1)
        told = [tuple(p) for batches in ranks for batch in batches for p in batch["problems"]]
        assert set(told + [tuple(p) for p in state["problems"]]) == {("", "s1", "truncated_archive")}


@pytest.mark.parametrize("source", [MemoryStream([10, 10]), MemorySource(20)])
def test_a_position_that_was_edited_is_refused(source):
    _, state = consume(source, stop=2)
    consume(source, state=state, stop=1)
    for edited in ({**state, "epoch": -1}, {name: state[name] for name in ("fingerprint", "seed")}):
        with pytest.raises(InputError, match="position is damaged"):
            consume(source, state=edited, stop=1)


@pytest.mark.parametrize("source", [MemoryStream([10, 10]), MemorySource(20)])
def test_epochs_that_are_over_give_nothing(source):
    _, state = consume(source, stop=25)  # of 10 steps an epoch
    assert consume(source, state=state, epochs=1)[0] == [[]]
    assert len(consume(source, state=state, epochs=3)[0][0]) == 5


@pytest.mark.parametrize(
    ("shards", "world", "workers", "readers"), [(5, 1, 3, 3), (2, 1, 3, 2), (2, 4, 3, 1), (2, 1, 0, 1)]
)
def test_a_process_has_no_more_readers_than_shards(shards, world, workers, readers):
    source = MemoryStream([50] * shards, known=True)
    options = {"batch_size": 2, "rank": 0, "world_size": world, "seed": 0, "num_workers": workers}
    assert PairLoader(source, collate, **options).readers == readers

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ncu_hf.data.collator import PairCollator
from ncu_hf.data.loader.pair_loader import PairLoader
from ncu_hf.data.loader.split import sealed
from ncu_hf.data.records import PairSource, Record
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


def at(source, batch: int) -> dict:
    """The position before global batch `batch` of `take`'s loader."""
    epoch, place = divmod(batch, len(source) // 6)
    return sealed({"fingerprint": source.fingerprint, "seed": 5, "epoch": epoch, "position": 6 * place})


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


def test_seed_decides(collator):
    source = ListSource(24)
    first, again, other = (take(source, collator, 4, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        check_same(one, two)
    assert first[0]["keys"] != other[0]["keys"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a machine with fewer cores
def test_workers_change_nothing(collator, workers, start):
    source = ListSource(32, bad=(3, 17))
    state = at(source, start)
    plain = take(source, collator, 12, state=state)
    for one, two in zip(plain, take(source, collator, 12, num_workers=workers, state=state), strict=True):
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
    for one, two in zip(whole[start:], take(source, collator, 17 - start, state=at(source, start)), strict=True):
        check_same(one, two)


def test_resume_reads_nothing_of_what_was_consumed(collator):
    source = ListSource(32)
    batch = take(source, collator, 1, state=at(source, 1_000_003))[0]
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
    with pytest.raises(InputError, match=r"7 record\(s\).*global batch of 8 \(4 x 2"):
        PairLoader(ListSource(7), collator, batch_size=4, rank=0, world_size=2, seed=0)
    PairLoader(ListSource(8), collator, batch_size=4, rank=0, world_size=2, seed=0)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2}, {"seed": -1}])
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


def test_the_state_is_the_position_behind_the_last_batch(collator):
    source = ListSource(32)
    loader = PairLoader(source, collator, batch_size=6, rank=0, world_size=1, seed=5, num_workers=2)
    assert loader.state_dict() == at(source, 0)
    for number, _ in enumerate(islice(loader, 7), start=1):
        state = loader.state_dict()
        resumed = PairLoader(source, collator, batch_size=6, rank=0, world_size=1, seed=5, state=state)
        check_same(next(iter(resumed)), take(source, collator, number + 1)[-1])


def test_the_loader_ends_after_the_epochs_that_were_asked_for(collator):
    batches = take(ListSource(32), collator, 100, epochs=2)
    assert [batch["epoch"] for batch in batches] == [0] * 5 + [1] * 5


def test_the_global_random_state_is_left_alone(collator):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    take(ListSource(12), collator, 3, num_workers=1)
    assert torch.equal(torch.rand(3), wanted)

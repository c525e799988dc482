"""Batches reach a GPU from page-locked memory, on a stream of their own."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ncu_hf.cli import parse_arguments
from ncu_hf.data import open_pairs
from ncu_hf.data.loader import workers
from ncu_hf.loading import load_reference
from ncu_hf.run import Run
from ncu_hf.transfer import Transfer
from ncu_hf.workspace import Workspace


@pytest.fixture
def pinned(scene_options, words, tmp_path, monkeypatch):
    """What `DataLoader` is told of page-locked memory by a run on a kind of device: `pinned("cuda")`."""

    def ask(device: str, wanted: bool = True) -> bool:
        arguments, _ = parse_arguments(words({**scene_options, "output_dir": tmp_path}))
        arguments.training.dataloader_pin_memory = wanted  # `--use_cpu` turns it off
        data, told = arguments.data, []
        monkeypatch.setattr(type(arguments.training), "device", property(lambda _: SimpleNamespace(type=device)))

        class Loader(torch.utils.data.DataLoader):
            def __init__(self, *args, pin_memory: bool, **kwargs):
                told.append(pin_memory)
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(workers, "DataLoader", Loader)
        source = open_pairs(data.train_data, image_column=data.image_column, caption_column=data.caption_column)
        run = Run(arguments, Workspace(tmp_path), source, load_reference(arguments.model, list, 0, tmp_path / "no"))
        next(iter(run.loader()))
        return told[-1]

    return ask


def test_memory_is_locked_for_a_gpu_alone(pinned):
    assert pinned("cuda") is True
    assert pinned("cpu") is False
    assert pinned("cuda", wanted=False) is False


def test_transfer_on_a_cpu_is_none():
    tensors = {"a": torch.arange(3), "b": torch.ones(2)}
    assert all(Transfer(torch.device("cpu"))(tensors)[key] is value for key, value in tensors.items())


def test_the_computing_stream_waits_for_the_copy(monkeypatch):
    """Order of what a GPU is told: copy on the side, wait for it, and keep its memory until it is used."""
    told = []

    class Tensor:
        def to(self, device, non_blocking):
            told.append(("copy", active[-1], non_blocking))
            return self

        def record_stream(self, stream):
            told.append(("keep", stream.name))

    class Stream:
        def __init__(self, _device=None, name="side"):
            self.name = name

        def wait_stream(self, other):
            told.append(("wait", self.name, other.name))

    active = ["main"]

    @contextmanager
    def on(stream):
        active.append(stream.name)
        yield
        active.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream(name="main"))
    Transfer(torch.device("cuda"))({"a": Tensor()})
    assert told == [("copy", "side", True), ("wait", "main", "side"), ("keep", "main")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_arrives_is_what_was_sent():
    transfer, rows = Transfer(torch.device("cuda")), torch.arange(10_000_000).pin_memory()
    for start in range(5):
        assert torch.equal(transfer({"a": rows[start:]})["a"].cpu(), rows[start:])

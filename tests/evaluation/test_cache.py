"""Embeddings are kept by content: what is the same is not encoded again, what differs is."""

from __future__ import annotations

import copy
import os
import re
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ncu_hf.data import BadRecord
from ncu_hf.evaluation.cache import EmbeddingCache, default_folder, model_digest
from ncu_hf.evaluation.encode import ClipEncoder
from ncu_hf.evaluation.sets.images import stamp_files
from ncu_hf.reference import build_reference

TEXTS = ["red dot", "a small blue square", "x"]


@pytest.fixture(scope="module")
def tiny():
    return build_reference(TEXTS, config="tiny", seed=0)


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


def pictures(count, seed=3):
    pixels = torch.randint(0, 256, (count, 40, 36, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return [Image.fromarray(array) for array in pixels.numpy()]


class Unreadable(list):
    """Images that must not be asked for."""

    def __getitem__(self, row):
        raise AssertionError("read again")


def files(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def test_a_second_metric_encodes_nothing(tiny, cache, monkeypatch):
    first = ClipEncoder(*tiny, cache=cache)
    images, texts = first.encode_images(pictures(3), "stamp"), first.encode_texts(TEXTS)
    again = ClipEncoder(copy.deepcopy(tiny[0]), tiny[1], cache=cache)
    monkeypatch.setattr(again.model, "get_text_features", None)
    found = again.encode_images(Unreadable(range(3)), "stamp")
    assert torch.equal(found.embeds, images.embeds) and torch.equal(found.pooled, images.pooled)
    assert torch.equal(again.encode_texts(TEXTS), texts)
    assert all(re.fullmatch(r"[0-9a-f]{64}\.safetensors", name) for name in files(cache)) and len(files(cache)) == 2


def test_another_text_tower_and_projection_read_the_same_images(tiny, cache):
    ClipEncoder(*tiny, cache=cache).encode_images(pictures(3), "stamp")
    other = copy.deepcopy(tiny[0])
    with torch.no_grad():
        other.visual_projection.weight.mul_(torch.linspace(0.5, 2, 32)[:, None])
        other.text_model.final_layer_norm.weight += 1
    found = ClipEncoder(other, tiny[1], cache=cache).encode_images(Unreadable(range(3)), "stamp")
    expected = ClipEncoder(other, tiny[1]).encode_images(pictures(3))
    assert torch.equal(found.embeds, expected.embeds) and torch.equal(found.pooled, expected.pooled)
    assert len(files(cache)) == 1


def test_faults_are_kept(tiny, cache, png):
    images = [png(0), b"broken", png(1)]
    found = [ClipEncoder(*tiny, cache=cache).encode_images(images, "stamp") for _ in range(2)]
    assert found[0].faults == found[1].faults == {1: "undecodable"}


def test_without_a_stamp_or_a_cache_nothing_is_kept(tiny, cache):
    ClipEncoder(*tiny, cache=cache).encode_images(pictures(2))
    ClipEncoder(*tiny).encode_images(pictures(2), "stamp")
    assert not cache.folder.exists()


def test_whatever_changes_the_values_changes_the_entry(tiny, cache):
    model, processor = tiny
    ClipEncoder(model, processor, cache=cache).encode_images(pictures(2), "stamp")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.vision_model.post_layernorm.weight[0] += 1e-6
    sharper = copy.deepcopy(processor)
    sharper.image_processor.image_mean = [0.5, 0.5, 0.5]
    encoders = [
        (ClipEncoder(other, processor, cache=cache), "stamp"),
        (ClipEncoder(model, sharper, cache=cache), "stamp"),
        (ClipEncoder(model, processor, cache=cache, batch_size=1), "stamp"),
        (ClipEncoder(model, processor, cache=cache), "another stamp"),
    ]
    for number, (encoder, stamp) in enumerate(encoders, start=2):
        encoder.encode_images(pictures(2), stamp)
        assert len(files(cache)) == number
    ClipEncoder(model, processor, cache=cache).encode_texts(TEXTS)
    ClipEncoder(model, processor, cache=cache).encode_texts(TEXTS[::-1])
    assert len(files(cache)) == 7


def test_another_class_of_image_processor_with_the_same_settings_is_another_transform(tiny, cache):
    model, processor = tiny
    ClipEncoder(model, processor, cache=cache).encode_images(pictures(2), "stamp")
    other = copy.deepcopy(processor)
    # As where torchvision is there on one machine and not on the other: transformers has a class for each.
    same_settings = {"to_dict": lambda self: processor.image_processor.to_dict()}
    other.image_processor.__class__ = type("OtherProcessor", (type(processor.image_processor),), same_settings)
    ClipEncoder(model, other, cache=cache).encode_images(pictures(2), "stamp")
    assert len(files(cache)) == 2


def test_another_release_of_a_library_encodes_again(tiny, cache, monkeypatch):
    ClipEncoder(*tiny, cache=cache).encode_texts(TEXTS)
    for number, library in enumerate(("transformers", "torch", "PIL"), start=2):
        monkeypatch.setattr(f"{library}.__version__", "0")
        ClipEncoder(*tiny, cache=cache).encode_texts(TEXTS)
        assert len(files(cache)) == number


def test_an_image_that_is_replaced_in_place_changes_the_stamp(tmp_path, png):
    path = tmp_path / "image.png"
    path.write_bytes(png(0))
    before, state = stamp_files([path]), path.stat()
    assert stamp_files([path]) == before
    path.write_bytes(png(1)[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert stamp_files([path]) != before


def test_what_could_not_be_read_just_now_is_not_kept(tiny, cache, png):
    class Flaky(list):
        def __getitem__(self, row):
            raise BadRecord("unreadable_file")

    encoder = ClipEncoder(*tiny, cache=cache)
    assert encoder.encode_images(Flaky(range(2)), "stamp").faults == dict.fromkeys(range(2), "unreadable_file")
    assert encoder.encode_images([png(0), png(1)], "stamp").faults == {}
    assert len(files(cache)) == 1


def test_writers_of_one_entry_do_not_meet(cache, caplog):
    tensors = {"embeds": torch.arange(200_000.0)}

    def write():
        for _ in range(5):
            cache.save({"a": 1}, tensors, {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = cache.load({"a": 1})
        assert found is None or torch.equal(found[0]["embeds"], tensors["embeds"])
    assert files(cache) == [cache.path({"a": 1}).name] and not caplog.records


def flipped(data):
    """One bit of the last value is another one."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"garbage" * 100, lambda data: data[:-40], flipped, bytes.swapcase]
)
def test_a_broken_entry_is_encoded_again(tiny, cache, damage, caplog):
    encoder = ClipEncoder(*tiny, cache=cache)
    expected = encoder.encode_images(pictures(2), "stamp")
    path = next(cache.folder.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(encoder.encode_images(pictures(2), "stamp").embeds, expected.embeds)
    assert "encoded again" in caplog.text
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"pooled"}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tiny, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    encoder = ClipEncoder(*tiny, cache=EmbeddingCache(tmp_path / "file"))
    for count in (3, 2):
        assert encoder.encode_texts(TEXTS[:count]).shape == (count, 32)
    assert caplog.text.count("not cached") == 1


def test_the_digest_is_of_the_function_not_of_the_file(tiny, tmp_path):
    model = tiny[0]
    expected = model_digest(model)
    model.save_pretrained(tmp_path)
    assert model_digest(type(model).from_pretrained(tmp_path)) == expected
    other = copy.deepcopy(model)
    other.config.text_config.eos_token_id += 1
    assert model_digest(other) != expected


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("NCU_HF_CACHE", str(tmp_path))
    assert default_folder() == EmbeddingCache().folder == tmp_path
    monkeypatch.setenv("NCU_HF_CACHE", "~/vectors")
    assert default_folder() == Path.home() / "vectors"
    monkeypatch.delenv("NCU_HF_CACHE")
    assert default_folder().parts[-3:] == (".cache", "ncu_hf", "embeddings")

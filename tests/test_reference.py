"""The reference CLIP: seeded weights, a real CLIP tokenizer, and a folder that loads to the same model."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from ncu_hf.data.scenes import draw_scene
from ncu_hf.errors import InputError
from ncu_hf.reference import PRESETS, build_reference, load_config, train_tokenizer

CAPTIONS = [draw_scene(0, index, 16).caption for index in range(200)]
HARD_TEXTS = ["", "   ", "héllo wörld 你好", "a 🎉 don't", "\x00 \t\n", "UPPER Case", "star " * 100, "ring" * 100]


@pytest.fixture(scope="module")
def reference():
    return build_reference(CAPTIONS, config="tiny", seed=0)


@pytest.fixture(scope="module")
def saved(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    for part in reference:
        part.save_pretrained(folder)
    return folder


def batch(processor, texts):
    images = [draw_scene(1, index, 48).image for index in range(len(texts))]
    return processor(text=texts, images=images, return_tensors="pt", padding=True, truncation=True)


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_seed_determines_weights_and_tokenizer(reference):
    model, processor = reference
    again, same = build_reference(iter(CAPTIONS), config="tiny", seed=0)
    other, _ = build_reference(CAPTIONS, config="tiny", seed=1)
    assert same_weights(model, again) and not same_weights(model, other)
    assert processor.tokenizer.backend_tokenizer.to_str() == same.tokenizer.backend_tokenizer.to_str()


def test_global_random_state_neither_changes_nor_matters(reference):
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    model, _ = build_reference(CAPTIONS, config="tiny", seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and (np.random.get_state()[1] == before[2]).all()
    assert same_weights(model, reference[0])


def test_configuration_agrees_with_the_tokenizer(reference):
    model, processor = reference
    text, tokenizer = model.config.text_config, processor.tokenizer
    assert text.vocab_size == len(tokenizer) == model.text_model.embeddings.token_embedding.num_embeddings
    ids = (text.bos_token_id, text.eos_token_id, text.pad_token_id)
    assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert text.eos_token_id == len(tokenizer) - 1  # the largest id: pooling by argmax and by end id agree
    assert tokenizer.model_max_length == text.max_position_embeddings == 32
    assert text.attention_dropout == model.config.vision_config.attention_dropout == 0.0
    assert not model.training and model.dtype == torch.float32


def test_saved_folder_loads_to_the_same_embeddings(reference, saved):
    model, processor = reference
    loaded, info = CLIPModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    reloaded = CLIPProcessor.from_pretrained(saved)
    assert isinstance(reloaded.tokenizer, CLIPTokenizer)
    assert reloaded.tokenizer.model_max_length == 32
    first, second = (batch(each, CAPTIONS[:4] + HARD_TEXTS) for each in (processor, reloaded))
    assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert first["pixel_values"].shape == (12, 3, 32, 32)
    with torch.no_grad():
        a, b = model(**first), loaded(**second)
    assert torch.equal(a.image_embeds, b.image_embeds) and torch.equal(a.text_embeds, b.text_embeds)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_every_text_has_one_start_and_ends_at_the_end_token(reference, text):
    tokenizer = reference[1].tokenizer
    ids = tokenizer(text, truncation=True)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1] and tokenizer.bos_token_id not in ids[1:]
    assert len(ids) <= 32 and max(ids) < len(tokenizer)


def test_truncated_caption_keeps_start_and_end(reference):
    tokenizer = reference[1].tokenizer
    whole, cut = (tokenizer("star " * 100, truncation=flag)["input_ids"] for flag in (False, True))
    assert len(whole) == 102 and len(cut) == 32
    assert cut == [*whole[:31], tokenizer.eos_token_id]


@pytest.mark.parametrize("text", [*CAPTIONS[:20], "héllo wörld 你好", "zebra quagga"])
def test_tokenizer_round_trip(reference, text):
    tokenizer = reference[1].tokenizer
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_case_and_spaces_do_not_matter(reference):
    tokenizer = reference[1].tokenizer
    assert tokenizer("  A RED\n star ")["input_ids"] == tokenizer("a red star")["input_ids"]


def test_frequent_words_become_one_token(reference):
    tokens = reference[1].tokenizer.tokenize("a big star")
    assert tokens == ["a</w>", "big</w>", "star</w>"]


@pytest.mark.parametrize("vocab_size", [514, 515, 560])
def test_vocabulary_is_never_larger_than_asked(vocab_size):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=vocab_size, context=16)
    assert len(tokenizer) <= vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    decoded = tokenizer.decode(tokenizer("a big star")["input_ids"], skip_special_tokens=True)
    assert decoded == "a big star"


def test_existing_tokenizer_is_used_and_captions_are_not_read(reference, saved):
    def unread():
        raise AssertionError("captions were read")
        yield ""

    model, processor = build_reference(unread(), config="tiny", seed=0, tokenizer=str(saved))
    assert processor.tokenizer.get_vocab() == reference[1].tokenizer.get_vocab()
    assert same_weights(model, reference[0])
    without, _ = build_reference(None, config="tiny", seed=0, tokenizer=str(saved))
    assert same_weights(without, model)


def test_config_file_is_followed(tmp_path):
    CLIPConfig(
        text_config={
            "hidden_size": 24,
            "num_attention_heads": 3,
            "num_hidden_layers": 1,
            "max_position_embeddings": 20,
        },
        vision_config={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 24}
        | {"patch_size": 12},
        projection_dim=8,
    ).save_pretrained(tmp_path)
    model, processor = build_reference(CAPTIONS, config=str(tmp_path / "config.json"), seed=0)
    assert processor.tokenizer.model_max_length == 20
    inputs = batch(processor, CAPTIONS[:2])
    assert inputs["pixel_values"].shape == (2, 3, 24, 24)
    with torch.no_grad():
        assert model(**inputs).text_embeds.shape == (2, 8)


def test_standard_presets_have_the_published_sizes():
    for name, patch in (("vit-b-32", 32), ("vit-b-16", 16)):
        ours, published = load_config(name), CLIPConfig(vision_config={"patch_size": patch})
        for tower in ("text_config", "vision_config"):
            first, second = getattr(ours, tower).to_dict(), getattr(published, tower).to_dict()
            assert first == second
        assert ours.projection_dim == published.projection_dim == 512


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent(name):
    config = load_config(name)
    assert config.vision_config.image_size % config.vision_config.patch_size == 0
    assert config.text_config.projection_dim == config.vision_config.projection_dim == config.projection_dim
    config.validate()


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="'demo'"):
        build_reference(CAPTIONS, config="dmo", seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON"),
        ("[1]", "not a CLIP configuration"),
        ('{"model_type": "bert"}', "'bert'"),
        ('{"model_type": "clip"}', "text_config is missing"),
        ('{"model_type": "clip", "text_config": {}, "vision_config": 3}', "vision_config is missing"),
        ('{"model_type": "clip", "text_config": {"hidden_size": "x"}, "vision_config": {}}', "hidden_size"),
        ('{"model_type": "clip", "text_config": {"hidden_size": 33}, "vision_config": {}}', "multiple"),
        ('{"model_type": "clip", "text_config": {"attention_dropout": 0.1}, "vision_config": {}}', "attention_dropout"),
    ],
)
def test_file_that_is_no_clip_config_is_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        build_reference(CAPTIONS, config=str(path), seed=0)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_missing_config_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json"):
        build_reference(CAPTIONS, config=str(tmp_path / "nothing.json"), seed=0)


@pytest.mark.parametrize("captions", [None, [], iter(()), ["", "  "]])
def test_no_captions_are_refused(captions):
    with pytest.raises(InputError, match="no captions"):
        build_reference(captions, config="tiny", seed=0)


@pytest.mark.parametrize("bad", [None, 3, b"bytes"])
def test_captions_that_are_not_text_are_refused(bad):
    with pytest.raises(InputError, match="caption 1 is"):
        build_reference(["a star", bad], config="tiny", seed=0)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="514"):
        build_reference(CAPTIONS, config="tiny", seed=0, vocab_size=513)


def test_unusable_tokenizers_are_refused(tmp_path, saved):
    with pytest.raises(InputError, match="cannot be loaded"):
        build_reference(None, config="tiny", seed=0, tokenizer=str(tmp_path / "nothing"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((saved / name).read_text())
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the class that takes the file as it is
    state["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="end token"):
        build_reference(None, config="tiny", seed=0, tokenizer=str(tmp_path))


def test_equally_frequent_pairs_are_merged_in_the_order_of_the_bytes():
    """Not in that of a hash table, which is another in every process: a run must find its tokenizer again."""
    letters = "qwertyuiopasdfghjklzcvbnm"
    tokenizer = train_tokenizer([f"x{letter}" for letter in letters] * 2, vocab_size=600, context=16)
    merges = [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert merges == [("x", f"{letter}</w>") for letter in sorted(letters)]

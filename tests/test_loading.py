"""What a run starts from, where no Hub answers."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import constants
from transformers import CLIPProcessor

from ncu_hf.errors import InputError
from ncu_hf.loading import load_model
from ncu_hf.pinning import pin

COMMIT = "1" * 40


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_model_of_the_hub_is_pinned_to_the_commit_of_the_cache(revision, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert pin("me/clip", revision) == revision
    cached = tmp_path / "models--me--clip"
    for path, text in {f"snapshots/{COMMIT}/config.json": "{}", f"refs/{revision or 'main'}": COMMIT}.items():
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(text)
    assert pin("me/clip", revision) == COMMIT


def test_a_folder_has_no_commit(clip_folder):
    assert load_model(clip_folder).revision is None


def test_a_processor_of_another_model_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    processor = CLIPProcessor.from_pretrained(folder)
    processor.image_processor.size = processor.image_processor.crop_size = {"height": 24, "width": 24}
    processor.save_pretrained(folder)
    with pytest.raises(InputError, match=f"--model {folder}: its vision tower reads images of 32 x 32 pixels"):
        load_model(folder)

"""What the fresh process compares, called in this process."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ncu_hf.publishing import HubSettings, publish
from ncu_hf.publishing.attempts import Refused
from ncu_hf.publishing.fresh_load import Differs, compare, digest, draw_images, load, main

REPO = "me/clip-ncu"


def change(path, name: str, alter) -> None:
    weights = load_file(path)
    weights[name] = alter(weights[name])
    save_file({key: value for key, value in weights.items() if value is not None}, path, {"format": "pt"})


def test_a_refusal_is_told_with_its_status(hub, make_fault, run_folder, waits, monkeypatch, capsys):
    publish(run_folder, HubSettings(REPO))
    hub.faults.append(make_fault("GET", "/api/models/", 403, times=9))
    monkeypatch.setattr("sys.argv", ["fresh_load", REPO])
    assert main() == 1 and waits == []
    assert json.loads(capsys.readouterr().out) == {"error": "injected (403)", "refused": True}


def test_the_same_model_has_the_same_digest(hub, run_folder):
    commit = publish(run_folder, HubSettings(REPO)).commit
    found = compare(REPO, commit, run_folder)
    assert found["max_difference"] == 0 and found["commit"] == commit
    assert found["embedding_digest"] == digest(load(run_folder, with_prompt=True).tensors)
    alone = compare(REPO, None, None)
    assert alone == {**found, "max_difference": None}
    assert found["weights_sha256"] == hashlib.sha256(hub.repos[REPO].files()["model.safetensors"]).hexdigest()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda folder: change(folder / "model.safetensors", "logit_scale", lambda value: value + 1), "another file"),
        (lambda folder: (folder / "negative_prompt" / "model.safetensors").unlink(), "no file named"),
        (
            lambda folder: change(folder / "model.safetensors", "visual_projection.weight", lambda _: None),
            "missing keys",
        ),
        (
            lambda folder: change(folder / "model.safetensors", "visual_projection.weight", lambda v: v * torch.nan),
            "image embeddings are not finite",
        ),
    ],
    ids=["weights", "prompt", "missing", "nan"],
)
def test_a_difference_is_told(hub, make_run, tmp_path, alter, message):
    publish(make_run(tmp_path / "published"), HubSettings(REPO))
    alter(make_run(tmp_path / "local"))
    with pytest.raises((Differs, Refused, OSError), match=message):
        compare(REPO, None, tmp_path / "local")


def test_a_changed_prompt_differs(hub, make_run, tmp_path):
    publish(make_run(tmp_path / "published"), HubSettings(REPO))
    prompt = make_run(tmp_path / "local") / "negative_prompt" / "model.safetensors"
    change(prompt, "vectors", lambda value: value + 0.25)
    assert compare(REPO, None, tmp_path / "local")["max_difference"] >= 0.25


def test_a_changed_processor_differs(hub, make_run, tmp_path):
    publish(make_run(tmp_path / "published"), HubSettings(REPO))
    path = make_run(tmp_path / "local") / "processor_config.json"
    path.write_text(path.read_text().replace("0.4", "0.9"))
    assert compare(REPO, None, tmp_path / "local")["max_difference"] > 0.001


def test_nothing_there(hub, run_folder):
    with pytest.raises(Refused) as caught:
        compare("me/nothing", None, None)
    assert caught.value.unknown_repository
    publish(run_folder, HubSettings(REPO))
    del hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["model.safetensors"]
    with pytest.raises(Differs, match=r"no model\.safetensors"):
        compare(REPO, None, None)


def test_digest_depends_on_everything():
    tensors = {"image": torch.arange(6.0).reshape(2, 3), "text": torch.zeros(2)}
    same = {"text": torch.zeros(2), "image": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert digest(tensors) == digest(same)
    for other in (
        {**tensors, "image": torch.arange(6.0).reshape(3, 2)},
        {**tensors, "text": torch.tensor([0.0, 1e-45])},
        {"image": tensors["image"], "prompt": torch.zeros(2)},
    ):
        assert digest(other) != digest(tensors)


def test_images_are_the_same_everywhere():
    images = draw_images()
    assert len({image.tobytes() for image in images}) == len(images)
    pixels = np.concatenate([np.asarray(image).ravel() for image in images])
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "7cf3e5ec71aede46"
    y, x = 5, 7
    assert images[1].getpixel((x, y)) == tuple(
        (2 * x * x + 3 * y * (c + 1) + 14 * x * y + 50 * c) % 256 for c in range(3)
    )

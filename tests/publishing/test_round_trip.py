"""A run is published, a fresh process loads it, and the card tells what that found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, pipeline

from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.modeling import NegativePrompt
from ncu_hf.publishing import HubSettings, Published, publish, publish_and_verify, verify

ROOT = Path(__file__).resolve().parents[2]
REPO = "me/clip-ncu"


@pytest.fixture(scope="module")
def trip(shared_hub, make_run, tmp_path_factory):
    """The Hub, the folder, and what was published by the whole of it."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "clip-ncu")
    # The launcher's variables would make the fresh process wait for others; the cache would hide what the Hub gives.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "HF_HUB_CACHE": "/nowhere", "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        return shared_hub, folder, publish_and_verify(folder, HubSettings("clip-ncu"))


def local_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_hub_has_what_the_folder_has(trip):
    hub, folder, published = trip
    there, here = hub.repos[REPO].files(), local_files(folder)
    private = {
        "run.json",
        "outcomes.safetensors",
        ".hidden",
        ".cache/x",
        ".eval_results/.x.yaml",
        "plots/.x.png",
        "initial/config.json",
    }
    private |= {"phases/unlearning/final/config.json"}
    assert there.keys() - {".gitattributes"} == here.keys() - private
    assert all(there[name] == here[name] for name in there.keys() & here.keys())
    for name in ("model.safetensors", "negative_prompt/model.safetensors", ".eval_results/cifar10.yaml", "README.md"):
        assert name in there
    assert published == Published(REPO, hub.repos[REPO].branches["main"], f"{hub.url}/{REPO}")
    assert hub.repos[REPO].messages == ["initial commit", "Model, card and measurements", "Verified by a fresh process"]
    assert not hub.repos[REPO].private


def test_card_and_numbers_tell_of_the_verification(trip, embed):
    hub, folder, _ = trip
    there = hub.repos[REPO].files()
    found = json.loads(there["results.json"])["verification"]
    first = list(hub.repos[REPO].commits)[1]
    assert found["commit"] == first and found["max_difference"] == 0 and found["torch"] == torch.__version__
    assert found["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    card = there["README.md"].decode()
    assert found["embedding_digest"] in card and REPO in card and "path/to/this/folder" not in card
    assert ModelCard(card).data.to_dict()["model-index"][0]["results"]
    assert yaml.safe_load(there[".eval_results/cifar10.yaml"])[0]["value"] == 50.0


def test_it_loads_from_the_hub(trip, embed):
    _, folder, published = trip
    clip, report = CLIPModel.from_pretrained(REPO, revision=published.commit, output_loading_info=True)
    assert not any(report.values())
    found = embed(clip, CLIPProcessor.from_pretrained(REPO, revision=published.commit))
    expected = embed(CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    prompt = NegativePrompt.from_pretrained(REPO, subfolder="negative_prompt")
    stored = load_file(folder / "negative_prompt" / "model.safetensors")
    assert torch.equal(prompt.vectors, stored["vectors"])


def test_pipeline_of_the_published_model(trip):
    classify = pipeline("zero-shot-image-classification", model=REPO)
    labels = ["a red circle", "a blue square", "two small triangles"]
    found = classify(Image.new("RGB", (40, 30), "red"), candidate_labels=labels)
    assert sorted(line["label"] for line in found) == sorted(labels)
    scores = [line["score"] for line in found]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    image = Image.new("RGB", (40, 30), "red")
    inputs = CLIPProcessor.from_pretrained(REPO)(
        text=[f"This is a photo of {label}." for label in labels], images=image, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(REPO)(**inputs).logits_per_image.softmax(dim=-1)[0]
    assert {line["label"]: line["score"] for line in found} == pytest.approx(
        dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5
    )


def test_an_unchanged_folder_sends_nothing(trip):
    hub, folder, published = trip
    hub.requests.clear()
    before = local_files(folder)
    assert publish_and_verify(folder, HubSettings(REPO)) == published
    assert not hub.sent("PUT", ".") and not hub.sent("POST", "/commit/") and local_files(folder) == before


@pytest.mark.slow
def test_a_fresh_process_tells_of_another_model(trip, make_run, tmp_path):
    published = trip[2]
    other = make_run(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    message = r"not verified: its model.safetensors is another file .*publish.py"
    with pytest.raises(TrainingStopped, match=message) as caught:
        verify(other, published, HubSettings(REPO))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_commit_that_is_not_there(trip):
    _, folder, published = trip
    with pytest.raises(InputError, match="not verified: Invalid rev id"):
        verify(folder, Published(REPO, "0" * 40, published.url), HubSettings(REPO))


@pytest.mark.slow
def test_a_private_branch_by_the_script(hub, run_folder, tokens, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": tokens["write"], "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "fresh"), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "scripts/publish.py", run_folder, "--hub_model_id", REPO, "--private", "--revision", "v1"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    repo = hub.repos[REPO]
    assert repo.private and set(repo.files("main")) == {".gitattributes"}
    assert repo.files("v1")["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert f"{hub.url}/{REPO}/tree/v1 ({repo.branches['v1']})" in done.stdout
    assert json.loads(repo.files("v1")["results.json"])["hub_revision"] == "v1"
    assert tokens["write"] not in done.stdout + done.stderr
    assert not any(tokens["write"].encode() in data for data in repo.files("v1").values())
    again = HubSettings(REPO, revision="v1", token=tokens["write"])
    assert publish(run_folder, again).commit == repo.branches["v1"]


@pytest.mark.slow
def test_a_recipe_publishes_and_verifies(hub, command, tokens, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": tokens["write"], "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "fresh"), "HF_HUB_OFFLINE": "0"}
    folder = tmp_path / "clip-ncu"
    flags = command(folder, push_to_hub="true", hub_private_repo="true", hub_token=tokens["write"])
    done = subprocess.run(
        [sys.executable, "recipes/ncu.py", *flags], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Published: {hub.url}/{REPO}" in done.stdout and tokens["write"] not in done.stdout + done.stderr
    there = hub.repos[REPO].files()
    found = json.loads(there["results.json"])
    assert found["verification"]["max_difference"] == 0 and found["hub_model_id"] == REPO and hub.repos[REPO].private
    assert found["verification"]["embedding_digest"] in there["README.md"].decode()
    assert there["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert "run.json" not in there and not [name for name in there if name.startswith("phases/")]
    assert not any(tokens["write"].encode() in data for data in there.values())

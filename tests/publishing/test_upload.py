"""What is uploaded of a folder, where to, and what its card says then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from ncu_hf.errors import InputError
from ncu_hf.publishing import HubSettings, publish
from ncu_hf.publishing.card import file_sha256, record_verification, write_results
from ncu_hf.reporting.model_card import render_model_card

ROOT = Path(__file__).resolve().parents[2]
REPO = "me/clip-ncu"
FOUND = {"commit": "1" * 40, "embedding_digest": "ab" * 32, "weights_sha256": "cd" * 32, "max_difference": 0.0}
FOUND |= {"torch": "2.13.0", "transformers": "5.23.0"}


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_captions_of_the_training_pairs_stay_here(hub, run_folder):
    (run_folder / "injected_noise.parquet").write_bytes(b"captions")
    publish(run_folder, HubSettings(REPO))
    assert "model.safetensors" in (files := hub.repos[REPO].files()) and "injected_noise.parquet" not in files


def test_a_branch_is_made_once(hub, run_folder):
    first = publish(run_folder, HubSettings(REPO, revision="trial/1"))
    assert set(hub.repos[REPO].branches) == {"main", "trial/1"} and first.url == f"{hub.url}/{REPO}/tree/trial/1"
    assert publish(run_folder, HubSettings(REPO, revision="trial/1")) == first
    assert len(hub.sent("POST", "/branch/")) == 1 and set(hub.repos[REPO].files("main")) == {".gitattributes"}
    assert results(run_folder)["hub_revision"] == "trial/1"
    publish(run_folder, HubSettings(REPO))
    assert "hub_revision" not in results(run_folder) and "model.safetensors" in hub.repos[REPO].files("main")


def test_a_tag_is_no_branch(hub, run_folder):
    huggingface_hub.HfApi().create_repo(REPO)
    hub.repos[REPO].tags["v1"] = hub.repos[REPO].branches["main"]
    with pytest.raises(InputError, match="'v1' is a tag"):
        publish(run_folder, HubSettings(REPO, revision="v1"))


def test_private_is_private(hub, run_folder):
    publish(run_folder, HubSettings("me/hidden", private=True))
    assert hub.repos["me/hidden"].private
    publish(run_folder, HubSettings("me/hidden"))
    huggingface_hub.HfApi().create_repo(REPO)
    with pytest.raises(InputError, match="is public"):
        publish(run_folder, HubSettings(REPO, private=True))
    assert set(hub.repos[REPO].files()) == {".gitattributes"}


def test_a_namespace_of_others(hub, run_folder, waits):
    with pytest.raises(InputError, match=r"not allowed \(403: You don't have the rights"):
        publish(run_folder, HubSettings("other/clip"))
    assert waits == []


def test_only_what_changed_is_sent(hub, run_folder):
    first = publish(run_folder, HubSettings(REPO))
    hub.requests.clear()
    assert (
        publish(run_folder, HubSettings(REPO)) == first
        and not hub.sent("PUT", ".")
        and not hub.sent("POST", "/commit/")
    )
    (run_folder / "data_health.json").write_text('{"seen": 1}')
    assert publish(run_folder, HubSettings(REPO)) != first
    assert not hub.sent("PUT", ".") and hub.repos[REPO].files()["data_health.json"] == b'{"seen": 1}'


def test_what_an_earlier_run_left(hub, run_folder):
    """Its prompt, plots and numbers would be taken for this model's; what somebody else added stays."""
    ours = run_folder / ".eval_results" / "ncu_hf-zero_shot-x.yaml"
    shutil.copy(run_folder / ".eval_results" / "cifar10.yaml", ours)
    publish(run_folder, HubSettings(REPO))
    repo = hub.repos[REPO]
    assert ".eval_results/ncu_hf-zero_shot-x.yaml" in repo.files()
    ours.unlink()
    (run_folder / ".eval_results" / "cifar10.yaml").unlink()
    repo.add("main", {**repo.commits[repo.branches["main"]], "LICENSE": (b"mine", False)}, "A license")
    shutil.rmtree(run_folder / "negative_prompt")
    (run_folder / "plots" / "losses.png").rename(run_folder / "plots" / "similarities.png")
    publish(run_folder, HubSettings(REPO))
    there = set(repo.files())
    assert ".eval_results/cifar10.yaml" in there and ".eval_results/ncu_hf-zero_shot-x.yaml" not in there
    assert "LICENSE" in there and "plots/similarities.png" in there and "model.safetensors" in there
    assert not [name for name in there if name.startswith("negative_prompt") or name == "plots/losses.png"]


def test_the_card_says_where_the_model_is(hub, run_folder):
    assert "path/to/this/folder" in (run_folder / "README.md").read_text()
    publish(run_folder, HubSettings("clip-ncu"))
    card = hub.repos[REPO].files()["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card and "path/to/this/folder" not in card
    found = {**FOUND, "weights_sha256": file_sha256(run_folder / "model.safetensors")}
    assert record_verification(run_folder, found)
    assert FOUND["embedding_digest"] in (run_folder / "README.md").read_text()
    assert not record_verification(run_folder, {**found, "commit": "2" * 40})
    publish(run_folder, HubSettings(REPO))
    assert results(run_folder)["verification"] == found
    publish(run_folder, HubSettings("me/elsewhere"))
    card = (run_folder / "README.md").read_text()
    assert (
        "verification" not in results(run_folder) and FOUND["embedding_digest"] not in card and "me/elsewhere" in card
    )


def test_what_was_verified_of_other_weights_is_not_told(hub, run_folder):
    publish(run_folder, HubSettings(REPO))
    record_verification(run_folder, FOUND)
    publish(run_folder, HubSettings(REPO))
    assert "verification" not in results(run_folder)
    assert FOUND["weights_sha256"] not in hub.repos[REPO].files()["README.md"].decode()


def test_the_card_has_the_name_of_the_repository(hub, run_folder):
    publish(run_folder, HubSettings("me/another-name"))
    card = huggingface_hub.ModelCard(hub.repos["me/another-name"].files()["README.md"].decode())
    assert card.data.model_name == "another-name" and "# another-name" in card.text.splitlines()


def test_a_card_of_an_earlier_release_is_not_taken_for_an_edited_one(hub, run_folder, caplog):
    card = run_folder / "README.md"
    card.write_text(card.read_text().replace("## Limits", "## Limitations"))
    write_results(run_folder, results(run_folder))
    publish(run_folder, HubSettings(REPO))
    assert card.read_text() == render_model_card(results(run_folder)) and not caplog.records
    assert f'from_pretrained("{REPO}")' in hub.repos[REPO].files()["README.md"].decode()


def test_an_edited_card_stays(hub, run_folder, caplog):
    card = run_folder / "README.md"
    card.write_text(card.read_text() + "\nThanks to everyone.\n")
    edited = card.read_text()
    publish(run_folder, HubSettings(REPO))
    assert card.read_text() == edited and "was edited" in caplog.text
    assert hub.repos[REPO].files()["README.md"].decode() == edited
    card.unlink()
    publish(run_folder, HubSettings(REPO))
    assert card.read_text() == render_model_card(results(run_folder)) and REPO in card.read_text()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("results.json", "has no results.json.*hf upload"),
        ("model.safetensors", "has no model.safetensors.*--resume_from_checkpoint"),
        ("", "no such folder"),
    ],
)
def test_folders_that_are_no_finished_run(hub, run_folder, missing, message):
    path = run_folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message) as caught:
        publish(run_folder, HubSettings(REPO))
    assert "\n" not in str(caught.value) and not hub.requests


@pytest.mark.parametrize("text", ["{", "[]", '{"model_name": "x"}'])
def test_numbers_that_no_run_wrote(hub, run_folder, text):
    (run_folder / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        publish(run_folder, HubSettings(REPO))
    assert (run_folder / "results.json").read_text() == text and not hub.sent("POST", "/commit/")


@pytest.mark.slow
def test_the_script_refuses_in_one_line(tmp_path):
    for words, message in (([tmp_path / "x"], "no such folder"), ([tmp_path], "has no config.json")):
        command = [sys.executable, "scripts/publish.py", *words, "--hub_model_id", REPO]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr

"""Publication needs access, and says so before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub
import pytest

from ncu_hf.config import NCUTrainingArguments
from ncu_hf.errors import InputError
from ncu_hf.publishing import HubSettings, check_login

REPO = "me/clip-ncu"


def refused(settings: HubSettings) -> str:
    with pytest.raises(InputError) as caught:
        check_login(settings)
    assert "\n" not in str(caught.value) and settings.repo_id in str(caught.value)
    return str(caught.value)


def test_access_writes_nothing(hub, waits, caplog):
    check_login(HubSettings(REPO))
    check_login(HubSettings("clip-ncu", private=True))
    assert {method for method, _, _ in hub.requests} == {"GET"} and not hub.repos and not caplog.records
    check_login(HubSettings("other/clip"))
    assert "'other'" in caplog.text


def test_tokens_that_do_not_do(hub, waits, tokens, monkeypatch):
    assert "may only read" in refused(HubSettings(REPO, token=tokens["read"]))
    wrong = "hf_" + "wrong" * 5
    line = refused(HubSettings(REPO, token=wrong))
    assert "the token is not accepted (401)" in line and wrong not in line
    monkeypatch.setenv("HF_TOKEN", wrong)
    assert "hf auth login" in refused(HubSettings(REPO))
    monkeypatch.delenv("HF_TOKEN")
    assert "no access token" in refused(HubSettings(REPO))
    check_login(HubSettings(REPO, token=tokens["write"]))


@pytest.mark.parametrize(
    ("status", "message"), [(403, "not allowed (403"), (429, "answers 429"), (500, "answers 500"), (None, "no answer")]
)
def test_a_hub_that_does_not_answer(hub, make_fault, waits, status, message):
    hub.faults.append(make_fault("GET", "whoami", status, times=99))
    assert message in refused(HubSettings(REPO)) and len(waits) == (status != 403)


def test_offline(hub, waits, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(HubSettings(REPO)) and not hub.requests and not waits


def test_a_public_repository_is_not_made_private_by_hope(hub, waits, tokens):
    api = huggingface_hub.HfApi()
    api.create_repo(REPO, private=False)
    assert "is public" in refused(HubSettings(REPO, private=True))
    check_login(HubSettings(REPO))
    api.create_repo("me/hidden", private=True)
    check_login(HubSettings("me/hidden", private=True))


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/", "me/a b", "", "me/a..b", "../x", "-x"])
def test_ids_that_cannot_be(repo_id):
    with pytest.raises(InputError, match="--hub_model_id"):
        HubSettings(repo_id)


@pytest.mark.parametrize("token", ["hf_ab c", "hf_é", "hf_x\nHost: y"])
def test_tokens_that_cannot_be_sent(token):
    with pytest.raises(InputError, match="--hub_token") as caught:
        HubSettings(REPO, token=token)
    assert token not in str(caught.value)


def test_a_token_of_the_environment_that_cannot_be_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    assert "HF_TOKEN" in refused(HubSettings(REPO)) and not hub.requests


def test_branches_that_cannot_be():
    for revision in ("0" * 40, " "):
        with pytest.raises(InputError, match="not a branch"):
            HubSettings(REPO, revision=revision)


def test_settings_of_a_run(tmp_path, tokens):
    flags = {"output_dir": str(tmp_path / "my-run"), "global_batch_size": 4, "use_cpu": True}
    assert HubSettings.of(NCUTrainingArguments(**flags)) == HubSettings("my-run")
    flags |= {"hub_model_id": REPO, "hub_private_repo": True, "hub_revision": "v1", "hub_token": tokens["write"]}
    found = HubSettings.of(NCUTrainingArguments(**flags))
    assert found == HubSettings(REPO, True, "v1", tokens["write"])
    assert tokens["write"] not in repr(found) + found.command(tmp_path)
    assert found.command(tmp_path).endswith("--hub_model_id me/clip-ncu --private --revision v1")
    assert tokens["write"] not in found.clean(f"at {tokens['write']} of https://a/b?sign=x") + found.clean(
        "hf_" + "a" * 20
    )


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", None], ids=["unreachable", "offline"])
def test_no_access_is_one_line_before_training(endpoint, scenes, clip_folder, tmp_path):
    environment = {**os.environ, "HF_TOKEN": "hf_" + "x" * 20, "HF_HOME": str(tmp_path / "home")}
    if endpoint:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    words = [
        *(sys.executable, "recipes/ncu.py", "--model", clip_folder, "--train_data", scenes, "--image_column", "image"),
        *("--caption_column", "caption", "--global_batch_size", "16", "--output_dir", tmp_path / "run"),
        *("--push_to_hub", "true", "--use_cpu", "true"),
    ]
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ") and "no access to" in line
    assert "xxxx" not in done.stderr and not (tmp_path / "run").exists()

"""A Hub that refuses, stumbles or falls silent; nothing is lost, and no token is told."""

from __future__ import annotations

import pytest

from ncu_hf.errors import InputError, TrainingStopped
from ncu_hf.publishing import HubSettings, publish, publish_and_verify
from ncu_hf.publishing.attempts import ATTEMPTS

REPO = "me/clip-ncu"
COMMIT, BATCH, STORAGE = "/commit/main$", "/objects/batch$", "^/storage/"


def local(folder, path: str) -> bytes:
    return (folder / path).read_bytes()


def complete(hub, folder) -> bool:
    there = hub.repos[REPO].files()
    return all(there[path] == local(folder, path) for path in ("model.safetensors", "README.md", "config.json"))


@pytest.mark.parametrize(
    ("status", "message"), [(401, "the token is not accepted"), (403, "not allowed .403: injected")]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/models/"), ("POST", "/repos/create"), ("POST", "/preupload/"), ("POST", BATCH), ("POST", COMMIT)],
)
def test_refused_at_once(hub, make_fault, run_folder, waits, tokens, status, message, method, path):
    hub.faults.append(make_fault(method, path, status, times=99))
    with pytest.raises(InputError, match=message) as caught:
        publish(run_folder, HubSettings(REPO))
    line = str(caught.value)
    assert "\n" not in line and tokens["write"] not in line and REPO in line
    assert f"python scripts/publish.py {run_folder} --hub_model_id {REPO}" in line
    assert len(hub.sent(method, path)) <= 2 and waits == []
    hub.faults.clear()
    publish(run_folder, HubSettings(REPO))
    assert complete(hub, run_folder)


@pytest.mark.parametrize("status", [409, 412, 500, 503, None])
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/models/"), ("POST", "validate-yaml"), ("POST", COMMIT)])
def test_tried_again(hub, make_fault, run_folder, waits, method, path, status):
    hub.faults.append(make_fault(method, path, status, times=2))
    publish(run_folder, HubSettings(REPO))
    assert complete(hub, run_folder) and len(waits) == 2 and waits[1] >= 2
    assert len(hub.sent("PUT", STORAGE)) == len(hub.repos[REPO].storage)


def test_retry_after_is_obeyed(hub, make_fault, run_folder, waits):
    hub.faults.append(make_fault("POST", COMMIT, 429, times=1, headers={"Retry-After": "77"}))
    hub.faults.append(make_fault("POST", COMMIT, 429, times=1, headers={"RateLimit": '"api";r=0;t=55'}))
    hub.faults.append(make_fault("POST", COMMIT, 429, times=1, headers={"Retry-After": "99999"}))
    publish(run_folder, HubSettings(REPO))
    assert complete(hub, run_folder) and waits == [77, 55, 300]


@pytest.mark.parametrize("status", [500, 429, None], ids=["500", "429", "cut"])
def test_a_file_that_does_not_arrive(hub, make_fault, run_folder, waits, status):
    hub.faults.append(make_fault("PUT", STORAGE, status, times=3, headers={"Retry-After": "1"}))
    publish(run_folder, HubSettings(REPO))
    assert complete(hub, run_folder)
    assert len(hub.sent("PUT", STORAGE)) == len(hub.repos[REPO].storage) + 3


def test_cut_for_good_and_gone_on_with(hub, make_fault, run_folder, waits, tokens):
    """The largest file never gets through; the next run sends that one alone."""
    largest = len(local(run_folder, "model.safetensors"))
    hub.faults.append(make_fault("PUT", f"/{largest}$", None, times=10**6))
    with pytest.raises(TrainingStopped, match=r"not published, no answer.*publish\.py") as caught:
        publish(run_folder, HubSettings(REPO))
    assert "\n" not in str(caught.value) and tokens["write"] not in str(caught.value)
    assert len(waits) == ATTEMPTS - 1 and 100 < sum(waits) < 200
    assert "model.safetensors" not in hub.repos[REPO].files() and len(hub.repos[REPO].storage) == 2
    hub.faults.clear()
    hub.requests.clear()
    publish(run_folder, HubSettings(REPO))
    ((_, path, size),) = hub.sent("PUT", STORAGE)
    assert path.endswith(f"/{largest}") and size == largest and complete(hub, run_folder)


def test_interrupted(hub, run_folder, monkeypatch, caplog):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ncu_hf.publishing.publication.verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_and_verify(run_folder, HubSettings(REPO))
    assert f"Go on with: python scripts/publish.py {run_folder} --hub_model_id {REPO}" in caplog.text


def test_a_commit_whose_answer_is_lost_is_made_once(hub, make_fault, run_folder, waits):
    hub.faults.append(make_fault("POST", COMMIT, None, done=True))
    published = publish(run_folder, HubSettings(REPO))
    repo = hub.repos[REPO]
    assert repo.messages == ["initial commit", "Model, card and measurements"] and len(waits) == 1
    assert published.commit == repo.branches["main"] and complete(hub, run_folder)


def test_silence_has_an_end(hub, make_fault, run_folder, waits):
    hub.faults.append(make_fault("POST", COMMIT, 503, times=10**6))
    with pytest.raises(TrainingStopped, match="it answers 503"):
        publish(run_folder, HubSettings(REPO))
    assert len(hub.sent("POST", COMMIT)) == ATTEMPTS


def test_no_secret_in_the_log(hub, make_fault, run_folder, waits, tokens, caplog, capfd):
    hub.faults += [make_fault("PUT", STORAGE, None, times=20), make_fault("POST", COMMIT, 500, times=2)]
    with caplog.at_level("INFO"):
        publish(run_folder, HubSettings(REPO))
    said = "".join(capfd.readouterr()) + caplog.text
    assert "trying again" in said and tokens["write"] not in said and "Signature" not in said


def test_a_card_that_the_hub_refuses(hub, run_folder, waits):
    card = run_folder / "README.md"
    card.write_text(card.read_text().replace("library_name: transformers", "license: made-up\nbase_model: ./here"))
    with pytest.raises(InputError, match=r"Invalid metadata in README\.md.*license 'made-up' is unknown"):
        publish(run_folder, HubSettings(REPO))
    assert not hub.sent("PUT", ".") and waits == []


def test_results_that_the_hub_refuses(hub, run_folder, waits):
    (run_folder / ".eval_results" / "cifar10.yaml").write_text("- dataset: {id: cifar10}\n  value: 1.0\n")
    with pytest.raises(InputError, match=r"cifar10\.yaml: dataset\.id and dataset\.task_id are required \(400\)"):
        publish(run_folder, HubSettings(REPO))
    assert waits == []

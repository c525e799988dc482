import math

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from ncu_hf.reporting.hub_results import eval_result_files, eval_results
from ncu_hf.reporting.metadata import card_metadata
from ncu_hf.reporting.model_card import render_model_card, write_card
from ncu_hf.reporting.results import publishable

REVISION = "5503434ddd753f426f4b38109466949a1217c2bb"


def by_set(results):
    found = {}
    for result in results:
        key = (result.task_type, result.dataset_name)
        found.setdefault(key, {})[result.metric_type] = result.metric_value
    return found


def test_every_set_is_in_the_model_index(run):
    found = by_set(eval_results(publishable(run)))
    assert list(found) == [
        ("zero-shot-image-classification", "cifar10"),
        ("zero-shot-image-classification", "caltech101"),
        ("image-text-retrieval", "held-out pairs"),
        ("image-text-retrieval", "mine"),
        ("image-classification", "cifar10"),
    ]
    assert found["zero-shot-image-classification", "cifar10"] == {"accuracy": 0.4, "mean_per_class": 0.39}
    assert found["image-classification", "cifar10"]["accuracy"] == 0.82
    assert len(found["image-text-retrieval", "mine"]) == 7
    assert found["image-text-retrieval", "held-out pairs"]["text_to_image_recall_at_5"] == 0.7


def test_the_data_set_of_a_number_is_named(run, check_metadata):
    results = eval_results(publishable(run))
    known = next(result for result in results if result.dataset_name == "caltech101")
    assert (known.dataset_type, known.dataset_split) == ("clip-benchmark/wds_vtab-caltech101", "test")
    assert known.dataset_revision == REVISION
    assert known.metric_type == "mean_per_class"  # the primary one comes first
    local = next(result for result in results if result.dataset_name == "held-out pairs")
    assert (local.dataset_type, local.dataset_split, local.dataset_revision) == ("held-out-pairs", None, None)
    assert all(result.verified is None for result in results)
    assert len(check_metadata(render_model_card(run))["model-index"][0]["results"]) == 5


def test_the_pairs_of_a_run_are_described_with_its_data(run):
    run["data"] |= {"eval_hub_id": "me/pairs", "eval_revision": REVISION}
    found = [result for result in eval_results(publishable(run)) if result.dataset_name == "held-out pairs"]
    assert {(result.dataset_type, result.dataset_revision) for result in found} == {("me/pairs", REVISION)}


def test_sets_of_one_repository_are_kept_apart(run, recalls, check_metadata):
    data = {"hub_id": "clip-benchmark/wds_mscoco_captions", "revision": REVISION, "split": "test"}
    run["retrieval"] = {
        "mscoco_5k": {"after": recalls(0.5, data=data)},
        "mscoco_5k_all_captions": {"after": recalls(0.6, data=data)},
        "Mscoco 5k all captions": {"after": recalls(0.7, data=data)},
        "mscoco-5k all captions": {"after": recalls(0.8, data=data)},
        "a b": {"after": recalls(0.1)},
        "a-b": {"after": recalls(0.2)},
    }
    (model,) = check_metadata(render_model_card(run))["model-index"]
    found = {
        r["dataset"]["name"]: r["metrics"][0]["value"] for r in model["results"] if "retrieval" in r["task"]["type"]
    }
    assert found == {name: sides["after"]["mean_recall"] for name, sides in run["retrieval"].items()}
    assert len(eval_result_files(run)) == 3 + 4


def test_files_name_sets_of_the_hub_alone(run):
    files = eval_result_files(run)
    assert list(files) == [
        ".eval_results/ncu_hf-zero_shot-cifar10.yaml",
        ".eval_results/ncu_hf-zero_shot-caltech101.yaml",
        ".eval_results/ncu_hf-linear_probe-cifar10.yaml",
    ]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/ncu_hf-zero_shot-caltech101.yaml"]))
    assert entry == EvalResultEntry(
        dataset_id="clip-benchmark/wds_vtab-caltech101",
        task_id="zero-shot-image-classification",
        value=0.74,
        dataset_revision=REVISION,
        notes="Mean per class accuracy, as a share; 95 % interval 0.6500 to 0.8500; 6085 items; "
        "class names and templates 0a1b2c3d4e5f6a7b",
    )
    assert type(entry.value) is float


def test_retrieval_has_an_entry_each_way(run, recalls):
    data = {"hub_id": "clip-benchmark/wds_flickr30k", "revision": "main", "note": "the first\nfive captions"}
    run["retrieval"] = {"flickr30k_1k": {"after": recalls(0.5, data=data, skipped={"truncated": 2, "empty": 1})}}
    text = eval_result_files(run)[".eval_results/ncu_hf-retrieval-flickr30k_1k.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("image-to-text-retrieval", 0.5),
        ("text-to-image-retrieval", 0.5),
    ]
    assert entries[0].dataset_revision is None  # a branch is no commit
    assert "1000 images; 5000 captions; 3 skipped; the first five captions" in entries[0].notes


def test_what_is_not_finite_is_nowhere(run, accuracy, check_metadata):
    hub = {"hub_id": "me/set"}
    run["zero_shot"] = {
        "nan": {"after": accuracy(math.nan, data=hub)},
        "inf": {"after": accuracy(0.5, data=hub, mean_per_class=math.inf, interval={"accuracy": [math.nan, 1.0]})},
    }
    run["retrieval"] = {}
    run["linear_probe"] = {}
    (model,) = check_metadata(render_model_card(run))["model-index"]
    assert [[metric["type"] for metric in result["metrics"]] for result in model["results"]] == [["accuracy"]]
    files = eval_result_files(run)
    assert list(files) == [".eval_results/ncu_hf-zero_shot-inf.yaml"]
    assert "nan" not in "".join(files.values()) and "interval" not in "".join(files.values())


@pytest.mark.parametrize(
    ("given", "stated"),
    [
        ("mit", {"license": "mit"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("openrail++", {"license": "openrail++"}),
        ("My own: see below\n", {"license": "other", "license_name": "my-own-see-below"}),
        ("other", {"license": "other", "license_name": "other"}),
        (None, {}),
    ],
)
def test_licences_are_those_of_the_hub(run, check_metadata, given, stated):
    metadata = check_metadata(render_model_card({**run, "license": given}))
    assert {key: metadata[key] for key in metadata if key.startswith("license")} == stated


@pytest.mark.parametrize(
    ("given", "stated"),
    [("en", ["en"]), (["en", "pt-BR", "English"], ["en", "pt-BR"]), ("English: yes", None), (None, None)],
)
def test_languages_are_codes(run, check_metadata, given, stated):
    assert check_metadata(render_model_card({**run, "language": given})).get("language") == stated


def test_ids_that_the_hub_could_not_have_are_left_out(run, check_metadata):
    run["base_model"]["name"] = "a/b/c"
    run["data"]["hub_id"] = "--x"
    run["zero_shot"]["cifar10"]["after"]["data"] = {"hub_id": "no id: at all\n- x"}
    metadata = check_metadata(render_model_card(run))
    assert "base_model" not in metadata and "datasets" not in metadata
    assert metadata["model-index"][0]["results"][0]["dataset"] == {"name": "cifar10", "type": "cifar10"}
    assert ".eval_results/ncu_hf-zero_shot-cifar10.yaml" not in eval_result_files(run)


def test_a_checkpoint_states_no_numbers(checkpoint, check_metadata):
    assert "model-index" not in check_metadata(render_model_card(checkpoint))
    assert eval_result_files(checkpoint) == {}


def test_metadata_without_results(scratch):
    del scratch["retrieval"]
    data = card_metadata(publishable(scratch))
    assert data.eval_results is None and data.metrics is None and data.base_model is None


def test_a_card_is_written_in_place_of_an_earlier_one(run, checkpoint, tmp_path):
    folder = tmp_path / ".eval_results"
    folder.mkdir()
    (folder / "mine.yaml").write_text("[]")
    write_card(run, tmp_path)
    written = {path.name for path in folder.iterdir()}
    assert written == {"mine.yaml"} | {name.rpartition("/")[2] for name in eval_result_files(run)}
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render_model_card(run)
    write_card(checkpoint, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"mine.yaml"}
    assert "A checkpoint, not the result of the run" in (tmp_path / "README.md").read_text(encoding="utf-8")

import copy
import re

import pytest
from huggingface_hub import ModelCard

from ncu_hf.reporting.model_card import render_model_card


def recalls(value):
    one = {"R@1": value, "R@5": value, "R@10": value, "median_rank": 3.0}
    one["interval"] = {f"R@{cutoff}": [value - 0.1, value + 0.1] for cutoff in (1, 5, 10)}
    return {
        "n_images": 1000,
        "n_captions": 5000,
        "image_to_text": one,
        "text_to_image": one,
        "mean_recall": value,
        "rsum": 600 * value,
        "interval": {"mean_recall": [value - 0.1, value + 0.1], "rsum": [0.0, 600.0]},
    }


def accuracy(value, digest):
    interval = {key: [value - 0.1, value + 0.1] for key in ("accuracy", "top5", "mean_per_class")}
    shares = {"accuracy": value, "top5": 0.9, "mean_per_class": value}
    return {**shares, "interval": interval, "n": 400, "n_classes": 10, "hash": digest}


def spread(mean):
    return {kind: {"mean": mean, "std": 0.1} for kind in ("positives", "negatives_mean", "negatives_top")}


def found(precision):
    return {"precision": precision, "recall": 0.8, "auroc": 0.95, "k": 1000, "n": 10000, "n_mismatched": 3000}


@pytest.fixture
def run():
    return {
        "model_name": "clip-ncu",
        "method": "ncu",
        "formulation": "released",
        "base_model": {"name": "openai/clip-vit-base-patch32", "kind": "hub", "revision": "abc123"},
        "license": None,
        "data": {
            "description": "Captioned photographs from /home/someone/data/train.csv.",
            "n_pairs": 10000,
            "noise_share": 0.3,
            "hub_id": "pixparse/cc3m-wds",
            "revision": None,
        },
        "data_health": {"seen": 10003, "skipped": 3, "reasons": {"truncated": 2, "empty_caption": 1}},
        "hyperparameters": {
            "forget_ratio": 0.3,
            "plan_weight": 0.7,
            "train_data": "/home/someone/data/train.csv",
            "hub_token": "hf_abcdefghijklmnopqrstuv",
            "revision": None,
        },
        "paper_hyperparameters": {"forget_ratio": 0.1, "plan_weight": 0.7},
        "phases": [
            {"name": "negative_prompt", "steps": 78, "epochs": 2, "seconds": 31.53},
            {"name": "unlearning", "steps": 1312, "epochs": 8, "seconds": 3131.5},
        ],
        "retrieval": {"before": recalls(0.4), "after": recalls(0.7)},
        "zero_shot": {"colour": {"before": accuracy(0.5, "0a1b"), "after": accuracy(0.4, "0a1b")}},
        "similarity": {"before": spread(0.2), "after": spread(0.3)},
        "forget_set": {"before": found(0.9), "after": found(0.92)},
        "plots": {"losses": "plots/losses.png", "similarities": "plots/similarities.png"},
        "prompt": {"folder": "negative_prompt", "length": 8},
        "command": "accelerate launch recipes/ncu.py --train_data /home/someone/data/train.csv",
        "environment": {"torch": "2.13.0"},
    }


@pytest.fixture
def scratch(run):
    """A reference model: method clip, no earlier model, few details."""
    return {
        "model_name": "reference",
        "method": "clip",
        "base_model": {"kind": "scratch"},
        "data": {"description": "Scenes."},
        "phases": [{"name": "clip", "steps": 10, "epochs": 1.5, "seconds": 3.0}],
        "hyperparameters": {"learning_rate": 0.001},
        "retrieval": {"after": run["retrieval"]["after"]},
    }


def headings(text):
    return re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)


def check_well_formed(text):
    """What holds for every card."""
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "verified" not in text
    for word in ("None", "Undefined", "/home/", "hf_abc", "nan", "{{", "{%"):
        assert word not in text, word
    without_code = re.sub(r"```.*?```", "code", card.text, flags=re.DOTALL)
    empty = re.search(r"^#+ .*\s*(?:^## |\Z)", without_code, re.MULTILINE)
    assert empty is None, empty
    assert "\n\n\n" not in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert set(table.splitlines()[1]) <= set("| -:")
    return card


def test_metadata(run):
    data = check_well_formed(render_model_card(run)).data
    assert data.base_model == "openai/clip-vit-base-patch32"
    assert data.datasets == ["pixparse/cc3m-wds"]
    assert "noisy-correspondence" in data.tags
    assert data.license is None
    assert data.model_name == "clip-ncu"
    values = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert len(values) == 6 + 2
    assert values["colour", "accuracy"] == 0.4
    assert values["held-out pairs", "text_to_image_recall_at_5"] == 0.7
    assert all(type(value) is float for value in values.values())


def test_sections(run):
    text = render_model_card(run)
    assert headings(text) == [
        "clip-ncu",
        "How to load it",
        "What was done",
        "Data",
        "Hyperparameters",
        "Results",
        "Image-text retrieval",
        "Zero-shot classification",
        "Forget set",
        "Similarities",
        "Training",
        "Limits",
        "Citation",
    ]
    assert "(plots/losses.png)" in text and "(plots/similarities.png)" in text
    assert "| truncated | 2 |" in text
    assert "colour `0a1b`" in text
    assert "eprint        = {2507.03434}" in text
    assert "1,000 images, 5,000 captions" in text
    assert "the 1,000 pairs of lowest clean confidence, of 10,000," in text
    assert "`negative_prompt/`" in text
    assert "| `train_data` | train.csv |" in text


def test_what_differs_from_the_paper_is_marked(run):
    text = render_model_card(run)
    assert "| `forget_ratio` \\* | 0.3 | 0.1 |" in text
    assert "| `plan_weight` | 0.7 | 0.7 |" in text
    run["hyperparameters"]["forget_ratio"] = 0.1
    text = render_model_card(run)
    assert "differ from the paper" not in text
    assert "| `forget_ratio` | 0.1 |\n" in text


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (0.7, "from 40.0 % to 70.0 % (+30.0 points; the 95 % intervals do not overlap)"),
        (0.35, "from 40.0 % to 35.0 % (-5.0 points; the 95 % intervals overlap)"),
    ],
)
def test_the_outcome_is_told_either_way(run, after, sentence):
    run["retrieval"]["after"] = recalls(after)
    assert sentence in render_model_card(run)


def test_a_reference_claims_nothing_of_ncu(scratch):
    card = check_well_formed(render_model_card(scratch))
    assert "trained from random weights" in card.text
    for word in ("NCU", "ncu", "nlearn", "2507.03434", "negative prompt", "Forget", "forget set", "| before", "Before"):
        assert word not in str(card), word
    assert card.data.base_model is None and card.data.datasets is None
    assert "radford2021learning" in card.text
    assert "| 10 | 1.5 | 3 |" in card.text


def test_continued_training_names_its_start(scratch):
    scratch["base_model"] = {"name": "/home/someone/reference", "kind": "local"}
    card = check_well_formed(render_model_card(scratch))
    assert "A CLIP from a local checkpoint (`reference`), trained further" in card.text
    assert card.data.base_model is None


def test_another_method_is_named_without_claims(run):
    run["method"], run["formulation"] = "gradient_ascent", None
    text = render_model_card(run)
    check_well_formed(text)
    assert "`gradient_ascent`" in text
    assert "negative prompt is learned" not in text


def test_adapters_are_told(run):
    assert "LoRA" not in render_model_card(run)
    run["hyperparameters"]["lora_rank"] = 4
    assert "LoRA adapters of rank 4" in render_model_card(run)


def test_known_licence_and_hub_id_are_used(run):
    run |= {"license": "mit", "hub_model_id": "me/clip-ncu"}
    card = check_well_formed(render_model_card(run))
    assert card.data.license == "mit"
    assert 'CLIPModel.from_pretrained("me/clip-ncu")' in card.text


GROUPS = """retrieval zero_shot similarity forget_set plots prompt command environment data_health hyperparameters
paper_hyperparameters phases formulation"""


@pytest.mark.parametrize("group", GROUPS.split())
def test_every_group_may_be_missing(run, group):
    without = copy.deepcopy(run)
    del without[group]
    check_well_formed(render_model_card(without))
    without[group] = {}
    assert render_model_card(without) == render_model_card({**run, group: None})


def test_what_was_not_measured_is_said(run):
    for group in ("retrieval", "zero_shot", "similarity", "forget_set"):
        del run[group]
    card = check_well_formed(render_model_card(run))
    assert "Results" not in headings(card.text)
    assert "did not measure" in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize("group", ["retrieval", "zero_shot", "similarity", "forget_set"])
def test_any_measurement_alone_has_its_place(run, group):
    for other in {"retrieval", "zero_shot", "similarity", "forget_set"} - {group}:
        del run[other]
    found = headings(check_well_formed(render_model_card(run)).text)
    assert len(found) == 10
    assert found[5] == "Results"


def test_a_reference_measured_on_known_mismatches_forgets_nothing(scratch, run):
    scratch["forget_set"] = {"after": run["forget_set"]["after"]}
    text = render_model_card(scratch)
    check_well_formed(text)
    assert "Mismatched pairs" in headings(text)
    assert "Forget" not in text


def test_text_of_the_data_set_cannot_break_tables(run):
    run["data_health"]["reasons"] = {"a|b\nc": 3}
    run["zero_shot"] = {"x|y {{ 7 * 7 }}": run["zero_shot"]["colour"]}
    text = render_model_card(run)
    assert "| a\\|b c | 3 |" in text
    assert "49" not in text


@pytest.mark.parametrize(
    ("subset", "told"),
    [
        ({"share": 0.5, "seed": 3, "shards": 288}, "50 % with seed 3: 288 shards"),
        ({"count": 500000, "seed": 0, "rows": 500000}, "500,000 pairs with seed 0: 500,000 pairs"),
    ],
)
def test_a_subset_is_told(run, subset, told):
    plain = render_model_card(run)
    run["data"]["subset"] = subset
    text = render_model_card(run)
    check_well_formed(text)
    assert told in text and "subset" not in plain

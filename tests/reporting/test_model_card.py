import copy
import json
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from ncu_hf.reporting.forgetting import forget_summary
from ncu_hf.reporting.hub_results import eval_result_files
from ncu_hf.reporting.methods import NOT_MEASURED
from ncu_hf.reporting.model_card import render_model_card
from ncu_hf.reporting.results import publishable

SECTIONS = ["clip-ncu", "How to load it", "What was done", "Data", "Hyperparameters"]
ENDS = ["Training", "Limits", "Citation"]
MEASURED = ["zero_shot", "retrieval", "linear_probe", "similarity", "forget_set"]


def headings(text):
    """Of the text outside fenced blocks, whose fences may be longer than usual."""
    return re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)


def without_code(text):
    return re.sub(r"^(`{3,}).*?^\1$", "code", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def render(check_metadata):
    """Render a card and check what holds for every one."""

    def check(run):
        text = render_model_card(run)
        check_metadata(text)
        body = ModelCard(text).text
        assert "verified" not in text
        for word in ("None", "Undefined", "/home/", "hf_abc", "nan", "inf ", "{{", "{%"):
            assert word not in text, word
        empty = re.search(r"^(#+) .*\s*(?:^#{1,2} |\Z)", without_code(body), re.MULTILINE)
        assert empty is None, empty
        assert "\n\n\n" not in text and "- \n" not in text
        for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
            assert set(table.splitlines()[1]) <= set("| -:")
            assert len(table.splitlines()) > 2
        return text

    return check


@pytest.fixture
def unmeasured(run):
    return {key: value for key, value in run.items() if key not in (*MEASURED, "verification")}


def test_metadata(run, check_metadata):
    metadata = check_metadata(render_model_card(run))
    assert metadata["base_model"] == "openai/clip-vit-base-patch32"
    assert metadata["datasets"] == ["pixparse/cc3m-wds"]
    assert metadata["language"] == ["en"]
    assert "noisy-correspondence" in metadata["tags"]
    assert "license" not in metadata
    assert metadata["model-index"][0]["name"] == "clip-ncu"
    assert {"accuracy", "mean_recall", "text_to_image_recall_at_5"} <= set(metadata["metrics"])


def test_sections(run, render):
    text = render(run)
    results = ["Results", "Zero-shot classification", "Image-text retrieval", "Linear probe", "Similarities"]
    checked = [*SECTIONS[:2], "Checked after the upload", *SECTIONS[2:]]
    assert headings(text) == [*checked, *results, "Forget set", "What was measured on", *ENDS]
    assert "(plots/losses.png)" in text and "(plots/similarities.png)" in text
    assert "![](" not in text
    assert "| truncated | 2 |" in text
    assert "of 10,003 records that were read, 3 (0.03 %) could not be used" in text
    assert "eprint        = {2507.03434}" in text
    assert "the 1,000 training pairs of lowest clean confidence (how sure the model is" in text
    assert "of 10,000, agree with the 3,000 that are known not to match" in text
    assert "Cosine similarity of images and texts of `held-out pairs`." in text
    assert "python -m ncu_hf.publishing.fresh_load me/clip-ncu --revision " in text
    assert "| `train_data` | train.csv |" in text
    assert "- Preprocessing in training: images cropped at random; not mirrored: captions name sides" in text


def test_how_to_load_it(run, render):
    text = render(run)
    for line in (
        'CLIPModel.from_pretrained("me/clip-ncu")',
        'CLIPProcessor.from_pretrained("me/clip-ncu")',
        'pipeline("zero-shot-image-classification", model="me/clip-ncu")',
        'NegativePrompt.from_pretrained("me/clip-ncu", subfolder="negative_prompt")',
    ):
        assert line in text
    for hub_id in (None, "without-owner", 'x"); import os; ("'):
        assert 'CLIPModel.from_pretrained("path/to/this/folder")' in render({**run, "hub_model_id": hub_id})


def test_the_branch_of_a_publication_is_part_of_how_to_load_it(run, render):
    text = render({**run, "hub_revision": "v2"})
    assert text.count('"me/clip-ncu", revision="v2"') == 4
    assert "revision=" not in render({**run, "hub_revision": 'x"); import os; ("'})


def test_the_card_can_be_made_again_from_the_stored_numbers(run):
    stored = json.loads(json.dumps(publishable(run), allow_nan=False))
    assert render_model_card(stored) == render_model_card(run)


def test_settings_that_differ_from_the_paper_come_first_and_are_marked(run, render):
    text = render(run)
    first = text.index("| `forget_ratio` \\* | 0.3 | 0.1 |")
    assert first < text.index("| `plan_weight` | 0.7 | 0.7 |") < text.index("| `train_data` | train.csv |  |")
    run["hyperparameters"]["forget_ratio"] = 0.1
    text = render(run)
    assert "differ from the paper" not in text
    assert "| `plan_weight` | 0.7 |\n| `forget_ratio` | 0.1 |\n" in text


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (0.7, "from 40.0 % to 70.0 % (+30.0 points; the 95 % intervals do not overlap)"),
        (0.35, "from 40.0 % to 35.0 % (-5.0 points; the 95 % intervals overlap)"),
    ],
)
def test_the_outcome_is_told_either_way(run, render, recalls, after, sentence):
    run["retrieval"]["held-out pairs"]["after"] = recalls(after)
    assert sentence in render(run)


def test_the_outcome_of_zero_shot_is_the_average_or_the_only_set(run, render):
    text = render(run)
    assert "The mean zero-shot result (average of 2 sets, primary metric of each) went from 59.5 % to 57.0 %" in text
    assert "The average over sets is the unweighted mean" in text
    del run["zero_shot"]["caltech101"]
    text = render(run)
    assert "Zero-shot classification of `cifar10` (accuracy) went from 50.0 % to 40.0 % (-10.0 points; the" in text
    assert "unweighted" not in text


def test_what_it_was_measured_on(run, render):
    table = render(run).split("### What was measured on")[1].split("## Training")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4  # cifar10 once, though two groups have it
    commit = "5503434ddd753f426f4b38109466949a1217c2bb"
    link = "https://huggingface.co/datasets/clip-benchmark/wds_vtab-cifar10"
    assert f"({link}/tree/{commit}), test | `5503434ddd75` | `0a1b2c3d4e5f6a7b` |" in rows[0]
    assert "| held-out pairs |" in rows[2] and "outputs/data/eval.parquet" in rows[2]
    assert "`ffffffffffff` |" in rows[3]
    assert "the first five captions of an image; 2 left out (truncated 2)" in rows[3]


def test_a_probe_tells_how_it_was_fitted(run, render):
    assert "| cifar10 | 45,000 | 5,000 | 0.316 | unprojected |" in render(run)
    run["linear_probe"]["cifar10"]["after"]["regularisation"] = 1.0
    assert "| cifar10 | 45,000 | 5,000 | 0.316 / 1 | unprojected |" in render(run)


def test_verification(run, render):
    text = render(run)
    assert "got the same embeddings as the local model" in text
    assert f"| digest of the embeddings | `{'e' * 64}` |" in text
    run["verification"]["max_difference"] = 1.25e-7
    assert "differ from those of the local model by 1.2e-07 at most" in render(run)
    del run["verification"]
    assert "Checked" not in render(run)


def test_a_run_without_known_mismatches_tells_what_it_forgot(unmeasured, render):
    line = {"clean_confidence_forget": 0.125, "clean_confidence_retain": 0.5, "clean_confidence_q50": 0.25, "step": 20}
    last = {**line, "step": 40, "clean_confidence_q10": 0.1, "clean_confidence_q90": 0.9}
    unmeasured["forget_summary"] = forget_summary({"unlearning": [line, last]}, 0.3)
    text = render(unmeasured)
    assert headings(text) == [*SECTIONS, "Forget set", *ENDS]
    assert "In each of the 40 steps of phase `unlearning` the 30 % of a batch" in text
    assert "median was 0.250, its 10 % and 90 % quantiles 0.100 and 0.900." in text
    assert "| forget set | 0.125 | 0.125 |\n| retained pairs | 0.500 | 0.500 |" in text
    unmeasured["forget_summary"] = forget_summary({"unlearning": [line, last]}, 0.3, 16)
    assert "that are among the 30 % of lowest clean confidence of the last 16 batches together" in render(unmeasured)


def test_known_mismatches_are_told_instead_of_the_log(run, render):
    text = render({**run, "forget_summary": forget_summary({}, 0.3)})
    summary = {"share": 0.3, "n_steps": 4, "confidence": {"forget": {"first": 0.1, "last": 0.2}}}
    assert render({**run, "forget_summary": summary}) == text
    assert headings(text).count("Forget set") == 1


def test_a_checkpoint_says_that_it_is_not_the_final_model(checkpoint, render):
    text = render(checkpoint)
    assert headings(text) == [*SECTIONS, *ENDS]
    top = text.split("# clip-ncu\n\n")[1]
    assert top.startswith(
        "> **A checkpoint, not the result of the run.** It was written after step 100 of 1,312 of phase `unlearning`"
        " (2 of 2), and nothing was measured on it.\n"
    )
    assert "not the final model" in text.split("## Limits")[1]
    assert NOT_MEASURED not in text
    assert 'from_pretrained("path/to/this/folder")' in text and "me/clip-ncu" not in text
    assert "(plots/losses.png)" in text and "similarities.png" not in text


def test_a_reference_claims_nothing_of_ncu(scratch, render):
    text = render(scratch)
    assert "trained from random weights" in text
    for word in ("NCU", "ncu", "nlearn", "2507.03434", "negative prompt", "Forget", "forget set", "| before", "Before"):
        assert word not in text, word
    assert "radford2021learning" in text
    assert "| 10 | 1.5 | 3 |" in text


def test_continued_training_names_its_start(scratch, render):
    scratch["base_model"] = {"name": "/home/someone/reference", "kind": "local"}
    text = render(scratch)
    assert "A CLIP from a local checkpoint (`reference`), trained further" in text
    assert "base_model" not in text


def test_another_method_is_named_without_claims(run, render):
    text = render({**run, "method": "gradient_ascent", "formulation": None})
    assert "`gradient_ascent`" in text
    assert "negative prompt is learned" not in text


def test_adapters_are_told(run, render):
    assert "LoRA" not in render(run)
    run["hyperparameters"]["lora_rank"] = 4
    assert "The text and vision towers changed by LoRA adapters of rank 4 alone" in render(run)
    run["hyperparameters"]["lora_towers"] = "text"
    assert "The text tower changed by LoRA adapters of rank 4 alone" in render(run)


def test_settings_are_written_as_a_person_writes_them(run, render):
    run["hyperparameters"] |= {"num_train_epochs": 8.0, "learning_rate": 5e-5, "bf16": True}
    run["paper_hyperparameters"]["num_train_epochs"] = 8
    text = render(run)
    assert "| `num_train_epochs` | 8 | 8 |" in text and "| `learning_rate` | 5e-05 |" in text
    assert "| `bf16` | True |" in text


def test_intervals_are_explained_where_there_are_some(run, unmeasured, render):
    assert "95 %" not in render({**unmeasured, "forget_set": run["forget_set"]})
    assert "95 % intervals in brackets" in render(run) and "paired comparison" not in render(run)
    test = {"group": "zero_shot", "set": "cifar10", "metric": "accuracy", "interval": [-0.12, -0.08]}
    assert "interval of a difference is that of a paired comparison" in render({**run, "paired": [test]})


GROUPS = """retrieval zero_shot linear_probe similarity forget_set plots prompt command environment data_health
hyperparameters paper_hyperparameters phases formulation verification hub_model_id language model_name data"""


@pytest.mark.parametrize("group", GROUPS.split())
def test_every_group_may_be_missing(run, render, group):
    without = copy.deepcopy(run)
    del without[group]
    text = render(without)
    without[group] = {}
    assert render_model_card(without) == text == render_model_card({**run, group: None})


def test_what_was_not_measured_is_said(unmeasured, render):
    text = render(unmeasured)
    assert headings(text) == [*SECTIONS, *ENDS]
    assert NOT_MEASURED in text


@pytest.mark.parametrize("group", ["zero_shot", "retrieval", "linear_probe", "forget_set"])
def test_the_forget_set_alone_says_nothing_of_quality(run, unmeasured, render, group):
    assert (NOT_MEASURED in render({**unmeasured, group: run[group]})) == (group == "forget_set")


@pytest.mark.parametrize("group", MEASURED)
def test_any_measurement_alone_has_its_place(run, unmeasured, render, group):
    found = headings(render({**unmeasured, group: run[group]}))
    assert found[:6] == [*SECTIONS, "Results"]
    of_sets = group in ("zero_shot", "retrieval", "linear_probe")
    assert len(found) == 5 + 2 + of_sets + 3


def test_a_reference_measured_on_known_mismatches_forgets_nothing(scratch, run, render):
    scratch["forget_set"] = {"after": run["forget_set"]["after"]}
    text = render(scratch)
    assert "Mismatched pairs" in headings(text)
    assert "Forget" not in text


def test_records_without_fault_are_told_as_healthy(run, render):
    run["data_health"] = {"seen": 10003, "skipped": 0, "reasons": {}}
    assert "Health: all 10,003 records that were read could be used." in render(run)


@pytest.mark.parametrize(
    ("subset", "told"),
    [
        ({"share": 0.5, "seed": 3, "shards": 288}, "50 % with seed 3: 288 shards"),
        ({"count": 500000, "seed": 0, "rows": 500000}, "500,000 pairs with seed 0: 500,000 pairs"),
    ],
)
def test_a_subset_is_told(run, render, subset, told):
    plain = render(run)
    run["data"]["subset"] = subset
    assert told in render(run) and "subset" not in plain


HOSTILE = [
    "a|b\\|c",
    "x`y``z",
    "line\n\n# Heading\n- item\n",
    "<script>alert(1)</script><!--",
    "[link](javascript:x)",
    "---\nlicense: mit\n---\n",
    "key: value # comment",
    "'single' \"double\" & * ! % @ ?",
    "- [x]: {a: b}",
    "a\x00b\x1b[31mc\u202ed\udcff",
    "x" * 20000,
    "猫 🙂",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "/home/me/secret folder/x",
    "null",
    "1e3",
    "```\n# out of the block\n```",
]


def poisoned(value, text):
    """Copy of a run with `text` in place of every string, and as the name of every set, reason and setting."""
    if isinstance(value, dict):
        return {key: poisoned(item, text) for key, item in value.items()}
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text(run, check_metadata, text):
    expected = headings(render_model_card(run))
    for key in ("model_name", "formulation", "command", "data", "environment", "language", "license"):
        run[key] = poisoned(run.get(key) or "mit", text)
    run["verification"]["torch"] = text
    run["base_model"] = {"kind": "hub", "name": text, "revision": text}
    run["phases"] = [{**phase, "name": text} for phase in run["phases"]]
    run["data_health"]["reasons"] = {text: 3}
    run["hyperparameters"] = {"seed": 1, "forget_ratio": text, text: text, "lora_towers": [text, text]}
    for group in ("zero_shot", "retrieval", "linear_probe"):
        sides = next(iter(run[group].values()))
        run[group] = {text: {side: poisoned(numbers, text) for side, numbers in sides.items()}}
        for numbers in run[group][text].values():
            numbers |= {"primary": "accuracy", "data": dict.fromkeys(("split", "note", "revision", "hub_id"), text)}
            numbers |= {"skipped": {text: 3}}
    rendered = render_model_card(run)
    check_metadata(rendered)
    found = headings(rendered)
    assert found[1:] == expected[1:] and len(found) == len(expected)
    rendered.encode("utf-8")
    assert len(rendered) < 40_000
    for word in ("hf_abc", "/home/", "\x00", "\x1b", "\u202e"):
        assert word not in rendered
    body = re.sub(r"(`+).+?\1", "code", rendered.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<(script|!--)", body)
    for table in re.findall(r"(?:^\|.*\|\n)+", rendered, flags=re.MULTILINE):
        unescaped = [re.sub(r"\\.", "", line).count("|") for line in table.splitlines()]
        assert len(set(unescaped)) == 1, table
    for text_of_file in eval_result_files(run).values():
        assert all(type(entry["value"]) is float for entry in yaml.safe_load(text_of_file))


def test_templates_in_data_are_not_rendered(run):
    run["zero_shot"] = {"x {{ 7 * 7 }}": run["zero_shot"]["cifar10"]}
    run["data"]["description"] = "{% for x in y %}{{ 6 * 7 }}{% endfor %}"
    text = render_model_card(run)
    assert "{{ 7 * 7 }}" in text and "{{ 6 \\* 7 }}" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_told(run, render, value):
    def broken(part):
        if isinstance(part, dict):
            return {key: broken(item) for key, item in part.items()}
        if isinstance(part, list):
            return [broken(item) for item in part]
        return value if isinstance(part, float) else part

    text = render({**run, **{group: broken(run[group]) for group in MEASURED}})
    assert headings(text) == [*SECTIONS[:2], "Checked after the upload", *SECTIONS[2:], *ENDS]
    assert "model-index" not in text


def test_the_forget_set_after_the_first_phase_is_told(run, render):
    assert "After the phase" not in render(run)
    before, after = run["forget_set"]["before"], run["forget_set"]["after"]
    between = {**before, "auroc": 0.876, "precision": 0.5}
    told = render({**run, "forget_set": {"before": before, "negative_prompt": between, "after": after}})
    assert "After the phase negative_prompt: AUROC 87.6, precision 50.0." in told


@pytest.mark.parametrize(
    ("noise", "line"),
    [
        ({}, "- Captions shuffled on purpose among 30 % of them\n"),
        ({"kind": "shuffled"}, "- Captions shuffled on purpose among 30 % of them (noise `shuffled`, seed 0): 2,998 "),
        (
            {"kind": "hard", "class_column": "a`b"},
            "on purpose by another one of the same ``a`b`` (noise `hard`, seed 0)",
        ),
        ({"kind": "hard"}, "another one that shares words with it (noise `hard`, seed 0): 2,998 pairs do not match\n"),
        ({"kind": "generic"}, "replaced on purpose by a generic web text (noise `generic`, seed 0): 2,998 pairs"),
        (
            {"kind": "partial"},
            "a part of the caption was replaced on purpose by words of another one (noise `partial`",
        ),
    ],
)
def test_injected_noise_is_told(run, noise, line):
    if noise:  # a run of an earlier release tells the share alone
        run["data"] |= {f"noise_{key}": value for key, value in noise.items()}
        run["data"] |= {"noise_seed": 0, "noise_chosen": 3000, "noise_mismatched": 2998}
    text = render_model_card(run)
    assert line in text and text.count("on purpose") == 1


def test_noise_that_was_left_out_is_told(run):
    run["data"] |= {"noise_seed": 0, "noise_mismatched": 2998, "noise_dropped": True}
    assert "2,998 pairs do not match, and were left out\n" in render_model_card(run)


def test_without_noise_none_is_told(run):
    del run["data"]["noise_share"]
    assert "on purpose" not in render_model_card(run)

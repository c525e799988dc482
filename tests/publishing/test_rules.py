"""The rules that the local Hub holds cards to: a card of a run passes, wrong ones do not."""

from __future__ import annotations

import pytest

GOOD = """library_name: transformers
license: apache-2.0
language: en
tags: [clip, ncu]
base_model: openai/clip-vit-base-patch32
datasets: [pixparse/cc3m-wds]
metrics: [accuracy]
model-index:
- name: x
  results:
  - task: {type: zero-shot-image-classification, name: Zero-shot}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics: [{type: accuracy, value: 0.5, name: Accuracy}]
"""


def test_cards_of_runs_pass(hub_rules, run_folder):
    assert hub_rules.card_errors((run_folder / "README.md").read_text()) == []
    assert hub_rules.card_errors(f"---\n{GOOD}---\n# x\n") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0", "license: made-up", "license 'made-up' is unknown"),
        ("license: apache-2.0", "license: other", "license_name is needed"),
        ("language: en", "language: English", "no code"),
        ("language: en", "language: null", "metadata.language is null"),
        ("tags: [clip, ncu]", "tags: [clip, null]", "metadata.tags[1] is null"),
        ("tags: [clip, ncu]", "tags: [clip, 3]", "tags must be strings"),
        ("library_name: transformers", "library_name: [x]", "library_name must be a string"),
        ("openai/clip-vit-base-patch32", "/home/me/clip", "base_model '/home/me/clip' is not a repository"),
        ("- name: x", "- nom: x", "name is required"),
        ("value: 0.5", "value: .nan", "is not finite"),
        (", value: 0.5", "", "metric.type and metric.value are required"),
        ("type: zero-shot-image-classification, ", "", "task.type is required"),
        ("type: cifar10, ", "", "dataset.type and dataset.name are required"),
        ("type: cifar10", "type: held-out pairs", "not an identifier"),
        ("value: 0.5", "value: 0.5, verified: true", "verified"),
        ("tags: [", "tags: [[", "not YAML"),
    ],
)
def test_wrong_cards_do_not_pass(hub_rules, old, new, message):
    assert old in GOOD
    assert any(message in error for error in hub_rules.card_errors(f"---\n{GOOD.replace(old, new)}---\n"))


@pytest.mark.parametrize("text", ["# x\n", "---\n- a\n---\n"])
def test_no_metadata(hub_rules, text):
    assert hub_rules.card_errors(text)


def test_evaluation_results(hub_rules):
    good = "- dataset: {id: a/b, task_id: t}\n  value: 0.5\n  source: {url: https://x}\n"
    assert hub_rules.eval_result_errors(good) == []
    for old, new in (("a/b", "held-out pairs"), (", task_id: t", ""), ("value", "wert"), ("0.5", "null"), ("url", "u")):
        assert hub_rules.eval_result_errors(good.replace(old, new)), new

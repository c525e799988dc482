import csv
from collections import defaultdict
from statistics import fmean

import pytest

from ncu_hf.errors import InputError
from ncu_hf.reporting.published import (
    FILE,
    KEYS,
    NOT_A_SET,
    published_beside,
    published_label,
    published_notes,
    published_numbers,
)

ROUNDING = 0.1  # percentage points: the columns are rounded, and so is their mean
FIFTEEN = (
    *("caltech101", "cifar10", "cifar100", "dtd", "fgvc_aircraft", "sst2", "flowers102", "food101", "gtsrb"),
    *("oxford_pets", "resisc45", "sun397", "eurosat", "stanford_cars", "stl10"),
)
RECALLS = [f"{direction} R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def by_model(table):
    """{model: {(set, metric): percent}} of one table."""
    models = defaultdict(dict)
    for entry in published_numbers("paper"):
        if entry["table"] == table:
            models[published_label(entry)][entry["set"], entry["metric"]] = 100 * entry["value"]
    return models


def test_every_line_of_the_file_is_a_number_of_its_own():
    with FILE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({tuple(line[key] for key in ("table", *KEYS)) for line in lines}) == len(lines) == 348
    assert [float(line["percent"]) for line in lines] == pytest.approx(
        [100 * entry["value"] for entry in published_numbers("paper")]
    )
    assert all(0 < float(line["percent"]) < 100 for line in lines)
    assert b"\r" not in FILE.read_bytes()


def test_size_of_each_table():
    sizes = defaultdict(int)
    for entry in published_numbers("paper"):
        sizes[entry["table"]] += 1
        assert entry["source"] == f"Han et al. 2025, arXiv:2507.03434, Table {entry['table']}"
    assert sizes == {1: 10 * 17, 2: 8 * 14, 3: 10 * 4, 4: 4 * 4, 5: 2 * 5}


def test_averages_of_table_1_are_means_of_its_fifteen_sets():
    models = by_model(1)
    assert len(models) == 10
    for numbers in models.values():
        assert set(numbers) == {(name, "accuracy") for name in (*FIFTEEN, "average", "imagenet1k")}
        mean = fmean(numbers[name, "accuracy"] for name in FIFTEEN)
        assert numbers["average", "accuracy"] == pytest.approx(mean, abs=ROUNDING)


def test_averages_of_table_2_are_means_of_the_six_recalls():
    models = by_model(2)
    assert len(models) == 8
    for numbers in models.values():
        assert len(numbers) == 14
        for name in ("flickr30k_1k", "mscoco_5k"):
            recalls = [numbers[name, metric] for metric in RECALLS]
            assert recalls[:3] == sorted(recalls[:3])
            assert recalls[3:] == sorted(recalls[3:])
            assert numbers[name, "mean_recall"] == pytest.approx(fmean(recalls), abs=ROUNDING)


def test_tables_agree_where_they_print_the_same_number():
    found = defaultdict(set)
    for entry in published_numbers("paper"):
        found[tuple(entry[key] for key in KEYS)].add(entry["value"])
    assert all(len(values) == 1 for values in found.values())
    assert found["zero_shot", "imagenet1k", "accuracy", "CC3M", "ViT-B/16", "NCU"] == {0.2}


@pytest.mark.parametrize(
    ("selector", "group", "name", "metric", "method", "value"),
    [
        ("paper/cc3m/vit-b-16", "zero_shot", "caltech101", "accuracy", "CLIP", 0.523),
        ("paper/yfcc15m-r/vit-b-32", "zero_shot", "imagenet1k", "accuracy", "NCU", 0.219),
        ("paper/cc12m/vit-b-32", "retrieval", "mscoco_5k", "text_to_image R@10", "NCU", 0.543),
        ("paper/cc3m/vit-b-32", "retrieval", "flickr30k_1k", "mean_recall", "CLIP", 0.29),
        ("paper/cc12m/vit-b-16", "linear_probe", "column 2", "accuracy", "NCU", 0.8476),
        ("paper/cc12m/vit-b-32", "zero_shot", "imagenet1k", "accuracy", "SoftCLIP", 0.344),
        ("paper/cc3m/vit-b-16", "zero_shot", "imagenet1k", "accuracy", "V3 false negatives only", 0.177),
    ],
)
def test_single_numbers(selector, group, name, metric, method, value):
    wanted = {"group": group, "set": name, "metric": metric, "method": method}
    found = [entry for entry in published_numbers(selector) if wanted.items() <= entry.items()]
    assert {entry["value"] for entry in found} == {value}


@pytest.mark.parametrize(
    "selector", ["paper/cc3m/vit-b-16", "paper/CC3M/ViT-B/16", "Paper/cc3m/ViT_B_16", "paper/CC3M/vitb16"]
)
def test_selectors_forgive_case_and_punctuation(selector):
    found = published_numbers(selector)
    assert {(entry["training_data"], entry["architecture"]) for entry in found} == {("CC3M", "ViT-B/16")}
    assert len(found) == 2 * 17 + 2 * 14 + 2 * 4 + 4 + 5


def test_training_data_alone_selects_both_architectures():
    found = published_numbers("paper/cc12m")
    assert {(entry["training_data"], entry["architecture"]) for entry in found} == {
        ("CC12M", "ViT-B/16"),
        ("CC12M", "ViT-B/32"),
    }


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("paper/cc3n/vit-b-16", "'paper/cc3m/vit-b-16'"),
        ("paper/yfcc15m", "'paper/yfcc15m-r'"),
        ("paper/yfcc15m-r/vit-b-16", "'paper/yfcc15m-r/vit-b-32'"),
        ("papers", "'paper'"),
        ("", "Known: paper, "),
        ("論文", "Known: paper, "),
    ],
)
def test_unknown_selectors_name_the_nearest(selector, hint):
    with pytest.raises(InputError) as error:
        published_numbers(selector)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_callers_get_copies():
    published_numbers("paper")[0]["value"] = 2.0
    assert published_numbers("paper")[0]["value"] == 0.523


def test_what_is_no_set_is_never_beside_a_set():
    entries = published_numbers("paper")
    for name in NOT_A_SET:
        assert any(entry["set"] == name for entry in entries)
        for group in ("zero_shot", "linear_probe"):
            assert published_beside(entries, group, name, "accuracy") == {}
    assert published_beside(entries, "zero_shot", "cifar10", "mean_per_class") == {}
    assert published_beside(entries, "retrieval", "mscoco_5k_all_captions", "mean_recall") == {}
    found = published_beside(entries, "retrieval", "mscoco_5k", "mean_recall")
    assert found["NCU CC3M ViT-B/16"] == 0.305
    assert len(found) == 8


def test_notes_cite_what_is_shown_and_nothing_else():
    entries = published_numbers("paper")
    notes = published_notes(entries, {("zero_shot", "imagenet1k")}, [], [])
    assert len(notes) == 1
    assert "arXiv:2507.03434, Table 1, Table 4, Table 5; not measured here" in notes[0]
    notes = published_notes(entries, {("retrieval", "mscoco_5k")}, ["a", "b", "a"], ["c"])
    assert "Table 2;" in notes[0]
    assert notes[1].endswith("of: a, b.")
    assert notes[2].endswith(": c.")

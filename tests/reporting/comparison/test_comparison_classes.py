import math

import pytest

from ncu_hf.reporting.comparison import one_measurement, per_class_table, per_class_tables


@pytest.fixture
def pets():
    """Two models on two sets, without numbers of classes."""
    results = {
        name: {"zero_shot": {"pets": {"accuracy": 0.5}, "cifar10": {"accuracy": 0.4}}} for name in ("base", "ours")
    }
    return {"models": [{"name": "base"}, {"name": "ours"}], "results": results}


def test_per_class_numbers_side_by_side(pets):
    classes = [{"class": "cat", "n": 3, "accuracy": 1 / 3}, {"class": "crane", "n": 4, "accuracy": 0.5}]
    classes.append({"class": "crane", "n": 5, "accuracy": 0.2})  # the bird and the machine
    base, ours = (pets["results"][name]["zero_shot"]["pets"] for name in ("base", "ours"))
    base["per_class"] = classes
    ours["per_class"] = [{**line, "accuracy": 1.0} for line in classes]
    ours["per_class"][0]["accuracy"] = math.nan
    base["confusions"] = [{"true": "cat", "predicted": "crane", "n": 2}, {"true": "crane", "predicted": "cat", "n": 1}]
    ours["confusions"] = [{"true": "crane", "predicted": "cat", "n": 3}]
    lines = per_class_table(pets, "pets", 80).splitlines()
    assert [line.split() for line in lines if not line.startswith("--") and line] == [
        ["class", "n", "base", "ours"],
        ["cat", "3", "33.3", "-"],
        ["crane", "4", "50.0", "100.0"],
        ["crane", "5", "20.0", "100.0"],
        ["true", "->"],
        ["predicted", "base", "ours"],
        ["crane", "->", "cat", "1", "3"],
        ["cat", "->", "crane", "2", "-"],
    ]
    assert per_class_tables(pets, 80) == per_class_table(pets, "pets", 80)
    assert per_class_table(pets, "cifar10", 80) == ""


def test_only_the_most_frequent_confusions(pets):
    numbers = pets["results"]["base"]["zero_shot"]["cifar10"]
    numbers["per_class"] = [{"class": "a", "n": 1, "accuracy": 1.0}]
    numbers["confusions"] = [{"true": f"t{index}", "predicted": "p", "n": index} for index in range(1, 40)]
    lines = [line for line in per_class_table(pets, "cifar10", 80).splitlines() if "-> p " in line]
    assert [int(line.split()[3]) for line in lines] == list(range(39, 19, -1))


def test_no_numbers_of_classes_no_table(pets):
    assert per_class_table(pets, "pets") == per_class_table(pets, "unknown") == per_class_tables(pets) == ""


def test_classes_of_hostile_names_stay_on_their_line(pets):
    pets["results"]["base"]["zero_shot"]["pets"]["per_class"] = [
        {"class": "a\nb\x1b[2J", "n": 1, "accuracy": 1.0},
        {"class": "x" * 300, "n": 2, "accuracy": 0.0},
    ]
    lines = per_class_table(pets, "pets", 80).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)


def test_one_measurement_in_words():
    numbers = {"accuracy": 0.5, "mean_per_class": 0.4, "interval": {"mean_per_class": [0.35, 0.45]}, "n": 2000}
    assert one_measurement("zero_shot", numbers) == "accuracy 50.0, n 2,000"
    numbers["primary"] = "mean_per_class"
    assert one_measurement("zero_shot", numbers) == "mean per class 40.0 [35.0, 45.0], n 2,000"
    assert one_measurement("linear_probe", {"accuracy": math.nan}) == "accuracy -, n -"
    pairs = {"mean_recall": 0.3, "n_images": 1000, "n_captions": 5000}
    assert one_measurement("retrieval", pairs) == "mean recall 30.0, n 6,000"

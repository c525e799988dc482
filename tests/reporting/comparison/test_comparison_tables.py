import csv
import io
import json
import math
import re

import pytest

from ncu_hf.reporting.comparison import (
    comparison_csv,
    comparison_markdown,
    comparison_rows,
    comparison_table,
)
from ncu_hf.reporting.published import published_numbers

HASH = "0123456789abcdef"


def interval(value):
    return [value - 0.05, value + 0.05]


def zero_shot(accuracy, primary="accuracy", n_classes=37, **more):
    values = {"accuracy": accuracy, "mean_per_class": accuracy - 0.1, "top5": 0.9}
    return {
        **values,
        "interval": {metric: interval(value) for metric, value in values.items()},
        "n": 2000,
        "n_classes": n_classes,
        "primary": primary,
        "hash": HASH,
        "data": {"hub_id": "clip-benchmark/wds", "revision": "c0ffee", "fingerprint": "f"},
        **more,
    }


def retrieval(first):
    recalls = {"R@1": first, "R@5": first + 0.1, "R@10": first + 0.2}
    part = {**recalls, "median_rank": 4.5, "interval": {key: interval(value) for key, value in recalls.items()}}
    mean = first + 0.1
    bounds = {"mean_recall": interval(mean), "rsum": [600 * bound for bound in interval(mean)]}
    return {
        "n_images": 1000,
        "n_captions": 5000,
        "image_to_text": part,
        "text_to_image": part,
        "mean_recall": mean,
        "rsum": 600 * mean,
        "interval": bounds,
        "data": {"fingerprint": "f"},
        "skipped": {},
    }


def paired(name, metric, difference, *, group="zero_shot", model="ours", baseline="base", p_value=0.0004, **more):
    bounds = [difference - 0.02, difference + 0.02]
    entry = {"group": group, "set": name, "metric": metric, "baseline": baseline, "model": model}
    return entry | {"difference": difference, "interval": bounds, "test": "McNemar", "p_value": p_value, "n": 7, **more}


def comparison_of(results, paired=(), published=()):
    models = [{"name": name, "source": f"org/{name}", "revision": None, "weights_sha256": "ab"} for name in results]
    return {"models": models, "results": results, "paired": list(paired), "published": list(published)}


@pytest.fixture
def small():
    """Two models on three sets of all groups."""
    return comparison_of(
        {
            "base": {
                "zero_shot": {"oxford_pets": zero_shot(0.5, "mean_per_class"), "cifar10": zero_shot(0.7, n_classes=10)},
                "retrieval": {"flickr30k_1k": retrieval(0.2)},
                "linear_probe": {"cifar10": zero_shot(0.75)},
            },
            "ours": {
                "zero_shot": {"oxford_pets": zero_shot(0.6, "mean_per_class"), "cifar10": zero_shot(0.8, n_classes=10)},
                "retrieval": {"flickr30k_1k": retrieval(0.3)},
                "linear_probe": {"cifar10": zero_shot(0.85)},
            },
        },
        [
            paired("oxford_pets", "mean_per_class", 0.1),
            paired("cifar10", "accuracy", 0.1, p_value=0.25),
            paired("flickr30k_1k", "image_to_text R@1", 0.1, group="retrieval"),
            paired("flickr30k_1k", "rsum", 60.0, group="retrieval", interval=[30.0, 90.0]),
        ],
    )


def random_comparison(generator, n_models, published="paper/cc3m/vit-b-16"):
    names = [f"org/model-with-a-long-name-{index}" for index in range(n_models)]
    sets = ["caltech101", "cifar10", "a-local-set-of-mine"]
    results = {}
    for name in names:
        shares = [0.2 + 0.6 * generator.random() for _ in sets]
        results[name] = {
            "zero_shot": {key: zero_shot(share) for key, share in zip(sets, shares, strict=True)},
            "retrieval": {"mscoco_5k": retrieval(shares[0])},
        }
    tests = [
        paired(key, "accuracy", generator.random() - 0.5, model=name, baseline=names[0], p_value=generator.random())
        for key in sets
        for name in names[1:]
    ]
    return comparison_of(results, tests, published_numbers(published))


def cells(text):
    """{(group, set, metric): cells in order, of all blocks} of a table for the terminal."""
    found, group, name, in_block = {}, None, None, False
    for line in text.splitlines():
        parts = re.split(r" {2,}", line.strip())
        if match := re.match(r"-- (.*?) -+$", line):
            group = match[1]
        elif not line:
            in_block = False
        elif parts[0] == "set":
            in_block = True
        elif group and in_block:
            name = name if line.startswith(" ") else parts.pop(0)
            found.setdefault((group, name, parts[0]), []).extend(parts[1:])
    return found


def shown(value, bounds=None, sign="", p_value=None, scale=100):
    text = f"{scale * value:{sign}.1f}"
    if bounds:
        text += f" [{scale * bounds[0]:{sign}.1f}, {scale * bounds[1]:{sign}.1f}]"
    return text if p_value is None else text + (" p<0.001" if p_value < 0.001 else f" p={p_value:.3f}")


@pytest.mark.parametrize("width", [80, 97, 120, 160])
@pytest.mark.parametrize("n_models", [1, 2, 5])
def test_the_table_holds_the_numbers_of_the_json_file(random_numbers, width, n_models):
    comparison = random_comparison(random_numbers, n_models)
    comparison = json.loads(json.dumps(comparison))
    found = cells(comparison_table(comparison, width))
    tests = {(entry["set"], entry["model"]): entry for entry in comparison["paired"]}
    for name in ("caltech101", "cifar10", "a-local-set-of-mine"):
        parts = [results["zero_shot"][name] for results in comparison["results"].values()]
        expected = [shown(part["accuracy"], part["interval"]["accuracy"]) for part in parts]
        for model in list(comparison["results"])[1:]:
            entry = tests[name, model]
            expected.append(shown(entry["difference"], entry["interval"], "+", entry["p_value"]))
        for method in ("CLIP", "NCU"):
            known = [
                entry["value"]
                for entry in comparison["published"]
                if entry["set"] == name and entry["method"] == method and entry["table"] == 1
            ]
            expected += [shown(value) for value in known] or ["-"]
        assert found["Zero-shot classification", name, "accuracy *"] == [*expected, "2,000"]
    ranks = found["Image-text retrieval", "mscoco_5k", "image to text median rank"]
    assert ranks[: 2 * n_models - 1] == ["4.5"] * n_models + ["+0"] * (n_models - 1)
    assert ranks[-1] == "1,000"
    rsum = found["Image-text retrieval", "mscoco_5k", "rsum"]
    first = next(iter(comparison["results"].values()))["retrieval"]["mscoco_5k"]
    assert rsum[0] == shown(first["rsum"], first["interval"]["rsum"], scale=1)
    assert rsum[-1] == "6,000"


@pytest.fixture
def random_numbers():
    import random

    return random.Random(0)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("n_models", [1, 2, 3, 7])
def test_no_line_is_wider_than_the_terminal(random_numbers, monkeypatch, width, n_models):
    comparison = random_comparison(random_numbers, n_models, "paper")
    comparison["results"]["org/model-with-a-long-name-0"]["zero_shot"]["x" * 90] = zero_shot(0.5)
    monkeypatch.setenv("COLUMNS", str(width))
    text = comparison_table(comparison)
    assert max(map(len, text.splitlines())) <= width
    row = cells(text)["Zero-shot classification", "cifar10", "accuracy *"]
    assert len(row) == n_models + (n_models - 1) + 10 + 1  # no column is lost


def test_a_small_table_as_a_whole():
    comparison = comparison_of(
        {
            "base": {
                "zero_shot": {"pets": zero_shot(0.5, "mean_per_class"), "sentiment": zero_shot(0.7, n_classes=2)},
            },
            "ours": {"zero_shot": {"pets": zero_shot(0.6, "mean_per_class")}},
        }
    )
    comparison["models"] = [
        {"name": "base", "source": "org/base", "revision": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"},
        {"name": "ours", "source": "/home/somebody/ours", "revision": None, "weights_sha256": "ab" * 32},
    ]
    assert comparison_table(comparison, 100) == (
        "base: org/base, revision 3d74acf9a28c\n"
        "ours: ours, weights sha256 abababababab\n"
        "\n"
        "-- Zero-shot classification ------------------------------------------------------------------------\n"
        "                                                                   ours minus\n"
        "set        metric                         base               ours        base      n\n"
        "pets       accuracy          50.0 [45.0, 55.0]  60.0 [55.0, 65.0]       +10.0  2,000\n"
        "           mean per class *  40.0 [35.0, 45.0]  50.0 [45.0, 55.0]       +10.0  2,000\n"
        "           top 5             90.0 [85.0, 95.0]  90.0 [85.0, 95.0]        +0.0  2,000\n"
        "sentiment  accuracy *        70.0 [65.0, 75.0]                  -           -  2,000\n"
        "           mean per class    60.0 [55.0, 65.0]                  -           -  2,000\n"
        "\n"
        "Shares in percent with 95 % intervals. * is the primary metric of a set. Averages are unweighted.\n"
        "A difference without an interval is that of the two values; no paired test was made."
    )


def test_averages_are_of_sets_that_all_models_have(small):
    small["results"]["base"]["zero_shot"]["dtd"] = zero_shot(0.1)
    found = cells(comparison_table(small, 160))
    average = found["Zero-shot classification", "average (2 of 3)", "primary metric"]
    assert average == ["55.0", "65.0", "+10.0"]  # of 40 and 70, 50 and 80
    small["results"]["ours"]["zero_shot"] = {}
    found = cells(comparison_table(small, 160))
    average = found["Zero-shot classification", "average (3 sets)", "primary metric"]
    assert average == ["40.0", "-", "-"]


def test_one_set_has_no_average(small):
    assert not [
        key for key in cells(comparison_table(small, 160)) if key[0] != "Zero-shot classification" and "av" in key[1]
    ]


def test_published_columns_have_an_average_over_the_same_sets(small):
    small["published"] = published_numbers("paper/cc3m/vit-b-16")
    found = cells(comparison_table(small, 160))
    average = found["Zero-shot classification", "average (2 sets)", "accuracy"]
    assert average[:3] == ["60.0", "70.0", "+10.0"]
    assert average[3:5] == [f"{(12.9 + 55.2) / 2:.1f}", f"{(16.3 + 54.3) / 2:.1f}"]  # CLIP, NCU
    primary = found["Zero-shot classification", "average (2 sets)", "primary metric"]
    assert primary[3:5] == ["-", "-"]


def test_published_numbers_are_marked_and_cited(small):
    small["published"] = published_numbers("paper/cc3m/vit-b-16")
    for text in (comparison_table(small, 160), comparison_markdown(small)):
        flat = " ".join(text.split()).replace("\\", "")
        assert "(published): printed in Han et al. 2025, arXiv:2507.03434, Table 1, Table 2;" in flat
        assert "beside accuracy, not beside the primary metric, of: oxford_pets." in flat
        assert "perhaps not the data of the published numbers: flickr30k_1k." in flat
    heads = comparison_markdown(small).splitlines()
    heads = next(line for line in heads if line.startswith("| set")).split(" | ")
    assert heads[5:7] == ["CLIP CC3M ViT-B/16 (published)", "NCU CC3M ViT-B/16 (published)"]
    found = cells(comparison_table(small, 160))
    assert found["Zero-shot classification", "oxford_pets", "accuracy"][3:5] == ["12.9", "16.3"]
    assert found["Zero-shot classification", "oxford_pets", "mean per class *"][3:5] == ["-", "-"]
    assert found["Image-text retrieval", "flickr30k_1k", "mean recall *"][3:5] == ["43.1", "50.1"]


def test_nothing_is_said_of_publications_that_are_not_shown(small):
    assert "published" not in comparison_table(small, 160)
    small["published"] = [entry for entry in published_numbers("paper") if entry["table"] == 3]
    small["results"]["base"]["linear_probe"]["column 1"] = zero_shot(0.5)
    assert "published" not in comparison_table(small, 160)


def test_differences_are_those_of_the_paired_tests(small):
    rows = {(row.group, row.set, row.metric): row for row in comparison_rows(small)}
    tested = rows["zero_shot", "cifar10", "accuracy"].differences["ours"]
    assert (tested.value, tested.low, tested.high, tested.p_value) == (0.1, 0.08, 0.12000000000000001, 0.25)
    plain = rows["zero_shot", "cifar10", "mean_per_class"].differences["ours"]
    assert (round(plain.value, 12), plain.low, plain.p_value) == (0.1, None, None)
    assert "base" not in rows["zero_shot", "cifar10", "accuracy"].differences


@pytest.mark.parametrize("entries", [[], None, [paired("cifar10", "accuracy", 0.5, baseline="another")]])
def test_without_paired_tests_differences_are_of_the_values(small, entries):
    small["paired"] = entries
    text = comparison_table(small, 160)
    assert cells(text)["Zero-shot classification", "cifar10", "accuracy *"][2] == "+10.0"
    assert "p=" not in text
    assert "paired tests" not in text


@pytest.mark.parametrize("broken", [math.nan, math.inf, None, "high"])
def test_values_that_are_no_numbers_are_dashes_and_empty_cells(small, broken):
    small["results"]["ours"]["zero_shot"]["cifar10"]["accuracy"] = broken
    small["results"]["base"]["zero_shot"]["cifar10"]["interval"]["accuracy"] = [0.1, broken]
    small["paired"] = [paired("cifar10", "accuracy", math.nan), paired("cifar10", "top5", 0.1, p_value=math.nan)]
    found = cells(comparison_table(small, 160))
    assert found["Zero-shot classification", "cifar10", "accuracy *"] == ["70.0", "-", "-", "2,000"]
    assert found["Zero-shot classification", "cifar10", "top 5"][2] == "+10.0 [+8.0, +12.0]"
    lines = [line for line in read(comparison_csv(small)) if line["metric"] == "accuracy" and line["set"] == "cifar10"]
    measured = {line["model"]: line for line in lines if line["group"] == "zero_shot"}
    assert (measured["base"]["value"], measured["base"]["low"], measured["base"]["high"]) == ("0.7", "", "")
    assert measured["ours"]["value"] == ""
    assert "nan" not in comparison_csv(small)


def test_a_set_that_no_model_could_be_measured_on_stays_visible(small):
    for model in small["results"].values():
        model["zero_shot"]["cifar10"] = {}
    small["paired"] = []
    found = cells(comparison_table(small, 160))
    assert found["Zero-shot classification", "cifar10", "accuracy *"] == ["-", "-", "-"]
    assert ("Zero-shot classification", "cifar10", "top 5") not in found


def test_top_five_only_where_it_says_something(small):
    for model in small["results"].values():
        model["zero_shot"]["cifar10"]["n_classes"] = 5
    metrics = {(row.set, row.metric) for row in comparison_rows(small)}
    assert ("cifar10", "top5") not in metrics
    assert ("oxford_pets", "top5") in metrics


def test_models_of_one_name_share_a_column_and_the_table_says_so(small):
    small["models"].append(dict(small["models"][0], source="org/other"))
    text = comparison_table(small, 160)
    assert "2 models are called base" in text
    assert len(cells(text)["Zero-shot classification", "cifar10", "accuracy *"]) == 4


@pytest.mark.parametrize(
    ("p_value", "words"),
    [(1.0, "p=1.000"), (0.0049, "p=0.005"), (0.001, "p=0.001"), (0.00099, "p<0.001"), (0.0, "p<0.001")],
)
def test_p_values(small, p_value, words):
    small["paired"] = [paired("cifar10", "accuracy", 0.1, p_value=p_value)]
    assert cells(comparison_table(small, 160))["Zero-shot classification", "cifar10", "accuracy *"][2].endswith(words)
    assert f"| +10.0 [+8.0, +12.0] {words} |" in comparison_markdown(small)


def test_never_minus_zero(small):
    small["paired"] = [paired("cifar10", "accuracy", -0.0001, interval=[-0.0004, 0.0003])]
    found = cells(comparison_table(small, 160))
    assert found["Zero-shot classification", "cifar10", "accuracy *"][2] == "+0.0 [+0.0, +0.0] p<0.001"


HOSTILE = "a|b\n\x1b[31m=cmd()`<b>$x$\u202e*_名前_"


def hostile(small):
    text = json.dumps(small)
    for name in ("oxford_pets", "ours"):
        text = text.replace(json.dumps(name), json.dumps(HOSTILE + name))
    return json.loads(text)


def test_hostile_names_neither_break_lines_nor_reach_the_terminal_raw(small):
    text = comparison_table(hostile(small), 100)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(cells(text)) == len(cells(comparison_table(small, 100)))
    plain, broken = comparison_markdown(small), comparison_markdown(hostile(small))
    assert plain.count("\n") == broken.count("\n")
    pipes = [len(re.findall(r"(?<!\\)\|", line)) for line in plain.splitlines()]
    assert pipes == [len(re.findall(r"(?<!\\)\|", line)) for line in broken.splitlines()]
    assert not re.search(r"(?<!\\)<b", broken)


def test_markdown_has_the_cells_of_the_terminal(small):
    expected = cells(comparison_table(small, 160))
    found, group, heads = {}, None, None
    for line in comparison_markdown(small).splitlines():
        if line.startswith("### "):
            group, heads = line.removeprefix("### "), None
        elif line.startswith("|"):
            parts = [part.strip().replace("\\", "") for part in line.strip("|").split(" | ")]
            if heads and parts[0].strip("-"):
                assert len(parts) == len(heads)
                found[group, parts[0], parts[1]] = [part for part in parts[2:] if part]
            heads = heads or parts
    assert found == expected


def test_markdown_leaves_folders_out(small):
    small["models"][1]["source"] = "/home/somebody/models/ours"
    text = comparison_markdown(small)
    assert "somebody" not in text
    assert "- ours: ours" in text
    assert not text.endswith("\n")


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_file_holds_all_numbers_exactly(small):
    small["published"] = published_numbers("paper/cc3m/vit-b-16")
    lines = read(comparison_csv(small))
    found = {(line["kind"], line["group"], line["set"], line["metric"], line["model"]): line for line in lines}
    for model, groups in small["results"].items():
        for name, numbers in groups["zero_shot"].items():
            for metric, bounds in numbers["interval"].items():
                line = found["measured", "zero_shot", name, metric, model]
                assert [float(line[key]) for key in ("value", "low", "high")] == [numbers[metric], *bounds]
                assert (line["n"], line["hub_id"], line["revision"]) == ("2000", "clip-benchmark/wds", "c0ffee")
                assert line["hash"] == HASH
                assert line["primary"] == str(metric == numbers["primary"]).lower()
        numbers = groups["retrieval"]["flickr30k_1k"]
        line = found["measured", "retrieval", "flickr30k_1k", "text_to_image R@5", model]
        assert (float(line["value"]), line["n"]) == (numbers["text_to_image"]["R@5"], "5000")
    for entry in small["paired"]:
        line = found["difference", entry["group"], entry["set"], entry["metric"], "ours"]
        assert [float(line[key]) for key in ("value", "low", "high")] == [entry["difference"], *entry["interval"]]
        assert (float(line["p_value"]), line["test"], line["baseline"]) == (entry["p_value"], "McNemar", "base")
        assert line["n"] == "7"
    published = [line for line in lines if line["kind"] == "published"]
    assert len(published) == len(small["published"])
    assert all(line["source"].startswith("Han et al. 2025, arXiv:2507.03434, Table ") for line in published)
    assert {line["kind"] for line in lines} == {"measured", "difference", "published"}
    assert not any(line["source"] for line in lines if line["kind"] != "published")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum", " =1", "\t=1", "\r=1", "\n=1", "＝1"])
def test_a_spreadsheet_runs_no_name(small, name):
    small["results"]["base"]["zero_shot"][name] = zero_shot(0.5, hash="-1", data={"hub_id": "@x", "revision": "=x"})
    lines = [line for line in read(comparison_csv(small)) if line["set"].endswith(name.strip())]
    assert {line["set"] for line in lines} == {f"'{name.strip()}"}
    measured = next(line for line in lines if line["model"] == "base")
    assert (measured["hash"], measured["hub_id"], measured["revision"]) == ("'-1", "'@x", "'=x")


def test_negative_numbers_stay_numbers(small):
    small["paired"] = [paired("cifar10", "accuracy", -0.25)]
    lines = [line for line in read(comparison_csv(small)) if line["kind"] == "difference"]
    assert min(float(line["value"]) for line in lines) == -0.25


def test_a_model_without_a_set_has_an_empty_line(small):
    del small["results"]["ours"]["zero_shot"]["cifar10"]
    small["paired"] = []
    lines = [line for line in read(comparison_csv(small)) if line["set"] == "cifar10" and line["group"] == "zero_shot"]
    assert {(line["model"], line["kind"], bool(line["value"])) for line in lines} == {
        ("base", "measured", True),
        ("ours", "measured", False),
    }


def test_nothing_measured_is_nothing_shown():
    for empty in ({"models": [{"name": "a"}]}, comparison_of({"a": {}}), comparison_of({"a": {"zero_shot": {}}})):
        assert comparison_table(empty) == comparison_markdown(empty) == ""
        assert len(comparison_csv(empty).splitlines()) == 1

import pytest

from ncu_hf.reporting.tables import before_after_table, markdown_table, result_rows


def recalls(first):
    numbers = {"R@1": first, "R@5": 0.5, "R@10": 0.75, "median_rank": 4.5, "interval": {"R@1": [0.1, 0.4]}}
    return {
        "n_images": 100,
        "n_captions": 500,
        "image_to_text": numbers,
        "text_to_image": numbers,
        "mean_recall": first,
        "interval": {"mean_recall": [0.0, 0.9]},
    }


def accuracy(value, n_classes=8):
    return {"accuracy": value, "mean_per_class": value, "top5": 0.9, "n": 40, "n_classes": n_classes, "interval": {}}


@pytest.fixture
def results():
    return {
        "retrieval": {"before": recalls(0.2), "after": recalls(0.25)},
        "zero_shot": {"colour": {"before": accuracy(0.5), "after": accuracy(0.4)}},
        "forget_set": {
            "before": {"precision": 0.9, "recall": 0.8, "auroc": 0.95, "k": 10, "n": 100},
            "after": {"precision": 0.9, "recall": 0.8, "auroc": 0.95, "k": 10, "n": 100},
        },
    }


def test_lines_of_the_terminal_table_align(results):
    lines = before_after_table(results).splitlines()
    assert lines[0].split() == ["metric", "before", "after", "difference", "n"]
    body = [line for line in lines[1:] if line and not line.startswith("--")]
    assert len({len(line) for line in [lines[0], *body]}) == 1
    assert len(body) == 9 + 3 + 3
    assert max(map(len, lines)) <= 110


def test_values_in_percent_with_interval_difference_and_n(results):
    rows = {row.name: row for row in result_rows(results)}
    row = rows["text to image R@1"]
    assert (row.value("before"), row.value("after")) == ("20.0 [10.0, 40.0]", "25.0 [10.0, 40.0]")
    assert (row.difference(), row.n) == ("+5.0", 500)
    assert rows["image to text R@1"].n == 100
    assert rows["colour (8 classes) accuracy"].difference() == "-10.0"
    assert rows["image to text median rank"].value("after") == "4.5"
    assert rows["AUROC"].difference() == "+0.0"


def test_a_loss_is_never_shown_as_minus_zero(results):
    results["forget_set"]["after"]["auroc"] -= 1e-6
    assert {row.name: row for row in result_rows(results)}["AUROC"].difference() == "+0.0"


def test_top_five_only_where_it_says_something(results):
    results["zero_shot"]["colour"]["after"] = accuracy(0.4, n_classes=5)
    assert not [row for row in result_rows(results) if "top 5" in row.name]


def test_without_an_earlier_model_there_is_one_column(results):
    for group in (results["retrieval"], results["forget_set"], results["zero_shot"]["colour"]):
        del group["before"]
    table = before_after_table(results)
    assert table.splitlines()[0].split() == ["metric", "value", "n"]
    assert " - " not in table


def test_a_single_missing_side_is_a_dash(results):
    del results["zero_shot"]["colour"]["before"]
    line = next(line for line in before_after_table(results).splitlines() if line.startswith("colour"))
    assert line.split()[-4:] == ["-", "40.0", "-", "40"]


def test_markdown_has_the_group_alone_and_escapes_cells(results):
    results["zero_shot"] = {"a|b\nc": results["zero_shot"]["colour"]}
    lines = markdown_table(results, "Zero-shot classification").splitlines()
    assert lines[0] == "| metric | before | after | difference | n |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| a\\|b c (8 classes) accuracy | 50.0 | 40.0 | -10.0 | 40 |"
    assert len(lines) == 5


def test_nothing_measured_is_an_empty_table():
    assert before_after_table({}) == markdown_table({}) == ""
    assert markdown_table({"zero_shot": {}}, "Retrieval") == ""

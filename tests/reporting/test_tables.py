import math

import pytest

from ncu_hf.reporting.rows import RETRIEVAL, ZERO_SHOT, average_row, result_rows
from ncu_hf.reporting.tables import before_after_table, markdown_table, table_rows


@pytest.fixture
def results(run):
    return run


def row_of(results, set_name, name):
    return next(row for row in result_rows(results) if (row.set_name, row.name) == (set_name, name))


def names(results, group, set_name):
    return [row.name for row in result_rows(results) if (row.group, row.set_name) == (group, set_name)]


def test_lines_of_the_terminal_table_align(results):
    lines = before_after_table(results).splitlines()
    assert lines[0].split() == ["before", "after", "difference"]
    body = [line for line in lines[1:] if line.startswith("  ") and "(n = " not in line]
    assert len({len(line) for line in [lines[0], *body]}) == 1
    assert len(body) == 2 * 3 + 1 + 2 * 9 + 2 + 3
    assert [line for line in lines if "cifar10" in line] == ["cifar10 (n = 10,000)"] * 2  # zero-shot, linear probe
    recalls = lines.index("held-out pairs (n = 6,000)")
    assert [line[:18].rstrip() for line in lines[recalls + 1 : recalls + 4]] == [
        "  mean recall *",
        "  image to text (n",
        "    R@1",
    ]
    assert lines.count("  image to text (n = 1,000)") == lines.count("  text to image (n = 5,000)") == 2
    assert "average of 2 sets" in lines and "training pairs (n = 10,000)" in lines
    assert lines[-1] == "* the set's primary metric"


def test_the_terminal_table_fits_80_columns(results, accuracy):
    """With the longest numbers, and with as many sets as an evaluation has."""
    whole = [0.991, 1.0]
    full = accuracy(1.0, interval={"accuracy": whole, "mean_per_class": whole, "top5": whole}, primary="mean_per_class")
    results["zero_shot"] = {f"set-{number}": {"before": accuracy(0.1), "after": full} for number in range(20)}
    test = {"group": "zero_shot", "metric": "mean_per_class", "interval": [-0.201, -0.205]}
    results["paired"] = [{**test, "set": f"set-{number}"} for number in range(20)]
    lines = before_after_table(results).splitlines()
    assert max(map(len, lines)) <= 80 and "average of 20 sets" in lines
    assert sum(line.endswith("[-20.1, -20.5]") for line in lines) == 20


def test_values_in_percent_with_interval_difference_and_n(results):
    row = row_of(results, "held-out pairs", "text to image R@1")
    assert (row.value("before"), row.value("after")) == ("40.0 [30.0, 50.0]", "70.0 [60.0, 80.0]")
    assert (row.difference(), row.size()) == ("+30.0", "5,000")
    assert row_of(results, "held-out pairs", "image to text R@1").n == 1000
    assert row_of(results, "held-out pairs", "mean recall").n == 6000
    assert row_of(results, "held-out pairs", "image to text median rank").value("after") == "3"
    assert row_of(results, "cifar10", "accuracy").difference() == "-10.0"
    assert row_of(results, "", "AUROC").difference() == "+0.0"


def test_a_loss_is_never_shown_as_minus_zero(results):
    results["forget_set"]["after"] = {**results["forget_set"]["after"], "auroc": 0.95 - 1e-6}
    assert row_of(results, "", "AUROC").difference() == "+0.0"


def test_the_primary_metric_of_a_set_comes_first_and_alone_is_marked(results):
    assert names(results, ZERO_SHOT, "cifar10") == ["accuracy", "mean per class", "top 5"]
    assert names(results, ZERO_SHOT, "caltech101") == ["mean per class", "accuracy", "top 5"]
    assert names(results, RETRIEVAL, "mine")[0] == "mean recall"
    primary = [row for row in result_rows(results) if row.primary]
    assert [row.name for row in primary] == ["accuracy", "mean per class", "mean recall", "mean recall", "accuracy"]
    table = markdown_table(results, ZERO_SHOT)
    assert table.count("**") == 2 * 3
    assert "|  | mean per class |" in table and "| caltech101 | **mean per class** |" in table


@pytest.mark.parametrize(("n_classes", "shown"), [(5, False), (6, True)])
def test_top_five_only_where_it_says_something(results, accuracy, n_classes, shown):
    results["zero_shot"] = {"colour": {"after": accuracy(0.4, n_classes=n_classes)}}
    assert ("top 5" in names(results, ZERO_SHOT, "colour")) == shown


def test_a_probe_has_its_own_rows(results):
    assert names(results, "Linear probe", "cifar10") == ["accuracy", "mean per class"]


def test_the_average_is_of_the_primary_metrics_and_has_no_interval(results):
    average = average_row(result_rows(results), ZERO_SHOT)
    assert average.values == pytest.approx({"before": (0.5 + 0.69) / 2, "after": (0.4 + 0.74) / 2})
    assert average.intervals == {} and average.size() == "-"
    last = markdown_table(results, ZERO_SHOT).splitlines()[-1]
    assert last == "| average of 2 sets | **primary metric** | 59.5 | 57.0 | -2.5 | - |"
    assert not [row for row in table_rows(results) if "average" in row.set_name and row.group == RETRIEVAL]


def test_the_average_is_of_the_same_sets_on_both_sides(results, accuracy):
    results["zero_shot"]["late"] = {"after": accuracy(1.0)}
    results["zero_shot"]["broken"] = {"before": accuracy(math.nan), "after": accuracy(1.0)}
    average = average_row(result_rows(results), ZERO_SHOT)
    assert average.set_name == "average of 2 sets"
    assert average.values["after"] == pytest.approx((0.4 + 0.74) / 2)


def test_one_set_has_no_average(results):
    del results["zero_shot"]["cifar10"]
    assert average_row(result_rows(results), ZERO_SHOT) is None
    assert "average" not in before_after_table(results)


def test_without_an_earlier_model_there_is_one_column(results):
    for group in ("zero_shot", "retrieval", "linear_probe"):
        results[group] = {name: {"after": sides["after"]} for name, sides in results[group].items()}
    del results["forget_set"]["before"]
    table = before_after_table(results)
    assert table.splitlines()[0].split() == ["value"]
    assert "| average of 2 sets | **primary metric** | 57.0 | - |" in markdown_table(results)


def test_a_single_missing_side_is_a_dash(results):
    del results["zero_shot"]["cifar10"]["before"]
    line = next(line for line in markdown_table(results).splitlines() if line.startswith("| cifar10"))
    assert line == "| cifar10 | **accuracy** | - | 40.0 [30.0, 50.0] | - | 10,000 |"


def test_what_is_not_finite_counts_as_not_measured(results, accuracy):
    broken = accuracy(0.5, mean_per_class=math.inf, top5=math.nan)
    broken["interval"] = {"accuracy": [0.4, math.nan]}
    results["zero_shot"] = {"x": {"before": broken, "after": broken}}
    assert names(results, ZERO_SHOT, "x") == ["accuracy"]
    assert row_of(results, "x", "accuracy").value("after") == "50.0"
    assert "nan" not in before_after_table(results) and "inf" not in before_after_table(results)


def test_markdown_has_the_group_alone_and_escapes_cells(results):
    results["zero_shot"] = {"a|b\n# c <b>": results["zero_shot"]["cifar10"]}
    lines = markdown_table(results, ZERO_SHOT).splitlines()
    assert lines[0] == "| set | metric | before | after | difference | n |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| a\\|b # c \\<b\\> | **accuracy** | 50.0")
    assert len(lines) == 5


def test_a_group_without_sets_has_no_column_for_them(results):
    assert markdown_table(results, "Forget set").splitlines()[0] == "| metric | before | after | difference | n |"


def test_nothing_measured_is_an_empty_table():
    assert before_after_table({}) == markdown_table({}) == ""
    assert markdown_table({"zero_shot": {}}, RETRIEVAL) == ""
    assert before_after_table({"zero_shot": {"x": {"after": {"accuracy": math.nan}}}}) == ""

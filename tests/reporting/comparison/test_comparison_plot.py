import math
from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from PIL import Image

from ncu_hf.reporting.comparison import Estimate
from ncu_hf.reporting.comparison import plot as comparison_plot
from ncu_hf.reporting.comparison.plot import is_significant, plot_differences
from ncu_hf.reporting.plots import LINES


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved, in order."""
    saved, original = [], comparison_plot.save

    def save(figure, path):
        saved.append(figure)
        return original(figure, path)

    monkeypatch.setattr(comparison_plot, "save", save)
    return saved


def zero_shot(value, primary="accuracy"):
    other = "mean_per_class" if primary == "accuracy" else "accuracy"
    bounds = {primary: [value - 0.02, value + 0.03]}
    return {primary: value, other: 0.01, "primary": primary, "n": 100, "n_classes": 10, "interval": bounds}


def comparison_of(values, differences=None, group="zero_shot", metric="accuracy"):
    """`values` {model: {set: share}}, `differences` {(set, model): (difference, p_value)}."""
    results = {model: {group: {name: zero_shot(v) for name, v in sets.items()}} for model, sets in values.items()}
    names = list(values)
    paired = [
        {"group": group, "set": name, "metric": metric, "baseline": names[0], "model": model, "difference": difference}
        | {"interval": [difference - 0.01, difference + 0.02], "test": "McNemar", "p_value": p_value, "n": 100}
        for (name, model), (difference, p_value) in (differences or {}).items()
    ]
    return {"models": [{"name": name} for name in names], "results": results, "paired": paired}


def bars(axes):
    """(middle, width, colour of the edge, filled) of each bar, in order from the top."""
    found = [
        (bar.get_y() + bar.get_height() / 2, bar.get_width(), to_hex(bar.get_edgecolor()).upper(), not bar.get_hatch())
        for container in axes.containers
        if isinstance(container, BarContainer)
        for bar in container.patches
    ]
    return sorted(found)


def intervals(axes):
    """{height: (low, high)} of the lines of the intervals."""
    lines = [line for collection in axes.collections for line in collection.get_segments()]
    return {round(float(line[0][1]), 6): tuple(round(float(x), 6) for x in line[:, 0]) for line in lines}


def test_bars_are_differences_at_their_sets_in_their_colours(figures, tmp_path):
    values = {"base": {"a": 0.5, "b": 0.6}, "one": {"a": 0.6, "b": 0.5}, "two": {"a": 0.5, "b": 0.65}}
    tests = {
        ("a", "one"): (0.1, 0.001),
        ("b", "one"): (-0.1, 0.2),
        ("a", "two"): (0.0, 1.0),
        ("b", "two"): (0.05, 0.049),
    }
    path = plot_differences(comparison_of(values, tests), tmp_path / "plots" / "x.png")
    (axes,) = figures[0].axes
    found = bars(axes)
    assert [round(width, 6) for _, width, _, _ in found] == [10.0, 0.0, -10.0, 5.0]
    assert [colour for _, _, colour, _ in found] == [LINES[0], LINES[1], LINES[0], LINES[1]]
    assert [filled for *_, filled in found] == [True, False, False, True]
    first = [place for place, *_ in found]
    assert intervals(axes)[round(first[2], 6)] == (-11.0, -8.0)
    ticks = axes.get_yticks()
    assert ticks == pytest.approx([(first[0] + first[1]) / 2, (first[2] + first[3]) / 2])
    assert [label.get_text().split("\n") for label in axes.get_yticklabels()] == [["a", "accuracy"], ["b", "accuracy"]]
    top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
    assert top < first[0] < first[-1] < bottom  # the first set is on top
    assert [text.get_text() for text in axes.texts] == ["+10.0", "+0.0", "-10.0", "+5.0"]
    assert any(set(line.get_xdata()) == {0} for line in axes.get_lines())
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend[:2] == ["one minus base", "two minus base"]
    assert path.stat().st_size > 10_000


def test_each_group_has_a_panel_with_its_own_metric(figures, tmp_path):
    recall = {"mean_recall": 0.4, "interval": {"mean_recall": [0.3, 0.5]}, "n_images": 10, "n_captions": 50}
    sides = {}
    for model, shift in (("base", 0.0), ("ours", 0.1)):
        sides[model] = {
            "zero_shot": {"pets": zero_shot(0.5 + shift, "mean_per_class")},
            "retrieval": {"pairs": {**recall, "mean_recall": 0.4 - shift}},
            "linear_probe": {"pets": {**zero_shot(0.5 + shift, "mean_per_class"), "accuracy": 0.7 + 2 * shift}},
        }
    plot_differences({"models": [{"name": "base"}, {"name": "ours"}], "results": sides}, tmp_path / "x.png")
    panels = [
        (axes.get_title(), axes.get_yticklabels()[0].get_text(), round(bars(axes)[0][1], 6)) for axes in figures[0].axes
    ]
    assert panels == [
        ("Zero-shot classification", "pets\nmean per class", 10.0),
        ("Image-text retrieval", "pairs\nmean recall", -10.0),
        ("Linear probe", "pets\naccuracy", 20.0),
    ]
    assert not any(filled for axes in figures[0].axes for *_, filled in bars(axes))  # nothing was tested


def test_a_single_model_has_bars_of_its_values(figures, tmp_path):
    plot_differences(comparison_of({"base": {"a": 0.5, "b": 1.0}}), tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert [(width, filled) for _, width, _, filled in bars(axes)] == [(50.0, True), (100.0, True)]
    assert list(intervals(axes).values()) == [(48.0, 53.0), (98.0, 103.0)]
    assert axes.get_xlabel() == "percent"
    assert axes.get_xlim()[0] == 0
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["base"]


@pytest.mark.parametrize(("n_sets", "n_models"), [(1, 2), (20, 2), (1, 5), (20, 5), (20, 1)])
def test_size_grows_with_the_bars_and_texts_stay_apart(figures, tmp_path, n_sets, n_models):
    values = {f"model {m}": {f"set-{s}": 0.5 + 0.01 * m - 0.002 * s for s in range(n_sets)} for m in range(n_models)}
    path = plot_differences(comparison_of(values), tmp_path / "x.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1200
        shown = n_sets * max(n_models - 1, 1)
        assert 20 * shown < image.height < 20 * shown + 80 * n_sets + 500
    (axes,) = figures[0].axes
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: -box.y0)
    assert len(boxes) == shown
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    labels = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: -box.y0)
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(labels))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)


@pytest.mark.parametrize(
    ("estimate", "significant"),
    [
        (Estimate(0.1, 0.05, 0.15, 0.01), True),
        (Estimate(0.1, 0.05, 0.15, 0.05), False),
        (Estimate(0.1, 0.05, 0.15), True),
        (Estimate(-0.1, -0.15, -0.05), True),
        (Estimate(0.1, 0.0, 0.15), False),
        (Estimate(0.1), False),
    ],
)
def test_what_counts_as_significant(estimate, significant):
    assert is_significant(estimate) is significant


def test_missing_sets_and_values_leave_gaps(figures, tmp_path):
    values = {"base": {"a": 0.5, "b": 0.6}, "one": {"a": 0.6}, "two": {"a": math.nan, "b": 0.65}}
    plot_differences(comparison_of(values), tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert [(round(width, 6), colour) for _, width, colour, _ in bars(axes)] == [(10.0, LINES[0]), (5.0, LINES[1])]


@pytest.mark.parametrize(
    "comparison",
    [
        {"models": [{"name": "a"}]},
        comparison_of({"a": {}, "b": {}}),
        comparison_of({"a": {"x": math.nan}}),
        comparison_of({"a": {"x": 0.5}, "b": {"y": 0.5}}),  # no set in common
    ],
)
def test_nothing_to_draw_is_no_file(tmp_path, comparison):
    assert plot_differences(comparison, tmp_path / "x.png") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["$\\foo{$", "_hidden", "a|b\n\x1b[31m", "x" * 300, "100 %"])
def test_hostile_names_are_drawn_as_text(figures, tmp_path, name):
    values = {"base": {name: 0.5}, name: {name: 0.6}}
    assert plot_differences(comparison_of(values), tmp_path / "x.png").stat().st_size > 5000
    legend = figures[0].legends[0].get_texts()[0].get_text()
    assert legend.strip().startswith(name[:2].replace("$", "\\$"))
    assert "\n" not in legend
    assert len(legend) < 150

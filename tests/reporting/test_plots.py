import math
import sys

import pytest
import torch
from PIL import Image

from ncu_hf.reporting import plots


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved, in order."""
    saved, original = [], plots.save

    def save(figure, path):
        saved.append(figure)
        return original(figure, path)

    monkeypatch.setattr(plots, "save", save)
    return saved


def lines_of(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}


def distributions(shift):
    generator = torch.Generator().manual_seed(0)
    return {kind: torch.randn(200, generator=generator) * 0.1 + shift for kind in plots.KINDS}


def test_losses_have_a_panel_a_phase_and_a_line_a_loss(figures, tmp_path):
    history = {
        "negative_prompt": [
            {"step": 10, "loss": 3.0, "separation_loss": 1.0, "relation_loss": 2.0, "learning_rate": 0.1},
            {"step": 20, "loss": 2.0, "separation_loss": 0.5, "relation_loss": math.nan},
            {"step": 20, "train_loss": 2.5, "eval_loss": 1.0},
        ],
        "unlearning": [{"step": 5, "loss": 1.0, "alignment_loss": 1.0}],
        "empty": [],
    }
    path = plots.plot_losses(history, tmp_path / "plots" / "losses.png")
    first, second = figures[0].axes
    assert (first.get_title(), second.get_title()) == ("negative prompt", "unlearning")
    assert lines_of(first) == {
        "separation": [(10, 1.0), (20, 0.5)],
        "relation": [(10, 2.0)],
        "total": [(10, 3.0), (20, 2.0)],
    }
    assert set(lines_of(second)) == {"alignment"}
    assert first.get_yscale() == "linear"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert round(image.info["dpi"][0]) == 150


@pytest.mark.parametrize(("lowest", "scale"), [(0.01, "log"), (0.5, "linear"), (0.0, "linear"), (-1.0, "linear")])
def test_wide_positive_losses_have_a_logarithmic_axis(figures, tmp_path, lowest, scale):
    plots.plot_losses({"clip": [{"step": 1, "loss": 4.0}, {"step": 2, "loss": lowest}]}, tmp_path / "x.png")
    assert figures[0].axes[0].get_yscale() == scale


def test_no_losses_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no losses"):
        plots.plot_losses({"clip": [{"step": 1, "loss": math.inf}]}, tmp_path / "x.png")


def test_similarities_share_their_axes(figures, tmp_path):
    plots.plot_similarities(distributions(0.1), distributions(0.6), tmp_path / "x.png")
    before, after = figures[0].axes
    assert (before.get_title(), after.get_title()) == ("before", "after")
    assert before.get_xlim() == after.get_xlim()
    assert before.get_ylim() == after.get_ylim()
    labels = [text.get_text() for text in after.get_legend().get_texts()]
    assert [label.split(",")[0] for label in labels] == [label for label, _ in plots.KINDS.values()]
    expected = f"mean {distributions(0.6)['positives'].mean().item():.2f}"
    assert labels[0].endswith(expected)


def test_similarities_of_a_model_without_predecessor(figures, tmp_path):
    plots.plot_similarities(None, distributions(0.6), tmp_path / "x.png")
    assert len(figures[0].axes) == 1


def test_degenerate_values_are_drawn(tmp_path):
    same = {kind: torch.full((5,), 0.5) for kind in plots.KINDS}
    broken = {kind: torch.full((5,), math.nan) for kind in plots.KINDS}
    assert plots.plot_similarities(same, broken, tmp_path / "x.png").stat().st_size > 1000


def test_pyplot_is_not_imported():
    assert "plt" not in vars(plots)
    assert not [name for name, value in vars(plots).items() if value is sys.modules.get("matplotlib.pyplot")]

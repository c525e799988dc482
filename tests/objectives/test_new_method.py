"""The README's example of a new method: one file and one line of the registry, and it runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
import torch.nn.functional as F

from ncu_hf import objectives
from ncu_hf.checkpoint import read_json
from ncu_hf.config import MethodArguments

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def example(first_line: str) -> str:
    (text,) = re.findall(rf"^```\w*\n# {re.escape(first_line)}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return text


def register(folder: Path, monkeypatch) -> type[objectives.Objective]:
    """Do what the README says: write the file, and add the line."""
    path = folder / "small_loss.py"
    path.write_text(example("ncu_hf/objectives/small_loss.py"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("ncu_hf.objectives.small_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    line = example("in METHODS of ncu_hf/objectives/__init__.py, with its import")
    name, kind = re.fullmatch(r'"(\w+)": \((\w+),\),\n', line).groups()
    monkeypatch.setitem(objectives.METHODS, name, (getattr(module, kind),))
    return getattr(module, kind)


def test_example_is_the_small_loss_trick(tmp_path, monkeypatch):
    objective = register(tmp_path, monkeypatch)(MethodArguments(forget_ratio=0.3))
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(10, 4, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    logits = 5 * image @ text.T
    losses = [(-logits[i].log_softmax(0)[i] - logits[:, i].log_softmax(0)[i]).item() / 2 for i in range(10)]  # by hand
    found = objective(image, text, None, torch.tensor(5.0, dtype=torch.float64).log())
    torch.testing.assert_close(found["contrastive_loss"].item(), sum(sorted(losses)[:7]) / 7)


def test_example_runs_and_has_a_card(tmp_path, monkeypatch, recipe):
    register(tmp_path, monkeypatch)
    folder = recipe("run", method="small_loss", forget_ratio=0.25)
    assert read_json(folder / "results.json")["method"] == "small_loss"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "`small_loss`" in card and "Mean symmetric InfoNCE of the pairs of each batch" in card
    assert "None" not in card

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ncu_hf.errors import InputError
from ncu_hf.reference import build_reference
from ncu_hf.reporting.audit import contact_sheet, rank_pairs, refuse_existing, write_audit

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_pairs.py"


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pairs_are_ranked_and_the_lowest_marked():
    confidence = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.7])
    pairs, order = rank_pairs(list("abcde"), list("ABCDE"), confidence, confidence * 2, 0.4)
    assert [pair.key for pair in pairs] == ["b", "d", "a", "e", "c"]
    assert order == [1, 3, 0, 4, 2]
    assert [pair.suggested_forget for pair in pairs] == [True, True, False, False, False]
    assert pairs[-1].cosine == pytest.approx(1.8)


def test_hostile_captions_survive_the_csv(tmp_path):
    captions = ['say "hi", twice', "two\nlines", "=1+1", "žluťoučký 猫"]
    pairs, _ = rank_pairs(list("abcd"), captions, torch.tensor([1e-9, 0.2, 0.3, 0.4]), torch.zeros(4), 0.25)
    write_audit(pairs, tmp_path / "x.csv")
    rows = read(tmp_path / "x.csv")
    assert [row["caption"] for row in rows] == captions
    assert list(rows[0]) == ["key", "caption", "clean_confidence", "cosine", "suggested_forget"]
    assert float(rows[0]["clean_confidence"]) == pytest.approx(1e-9)
    assert [row["suggested_forget"] for row in rows] == ["True", "False", "False", "False"]


def test_a_confidence_that_is_no_number_is_not_trusted():
    confidence = torch.tensor([0.2, float("nan"), 0.0, 0.9])
    pairs, order = rank_pairs(list("abcd"), list("abcd"), confidence, torch.zeros(4), 0.25)
    assert order == [1, 2, 0, 3] and pairs[0].suggested_forget and pairs[0].key == "b"


def test_output_is_not_replaced_unasked(tmp_path):
    (tmp_path / "x.csv").write_text("mine")
    refuse_existing({tmp_path / "y.csv": "--output"}, overwrite=False)
    refuse_existing({tmp_path / "x.csv": "--output"}, overwrite=True)
    with pytest.raises(InputError, match=r"--plot: .*x\.csv exists"):
        refuse_existing({tmp_path / "y.csv": "--csv", tmp_path / "x.csv": "--plot"}, overwrite=False)
    with pytest.raises(InputError, match="make it first"):
        refuse_existing({tmp_path / "no" / "x.csv": "--output"}, overwrite=True)


def test_contact_sheet_draws_every_picture(tmp_path):
    pairs, _ = rank_pairs(list("ab"), ["word " * 90, ""], torch.tensor([0.1, 0.9]), torch.zeros(2), 0.5)
    pictures = [Image.new("L", (300, 3), 0), Image.new("RGB", (5, 900), (255, 0, 0))]
    contact_sheet([("Worst", [(pictures[0], pairs[0])]), ("Best", [(pictures[1], pairs[1])] * 7)], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as sheet:
        colours = {colour: count for count, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert colours[255, 0, 0] >= 7 * 100
    assert colours[0, 0, 0] >= 190


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and ten pairs, of which one image is broken."""
    folder = tmp_path_factory.mktemp("audit")
    captions = [f"picture number {number}" for number in range(10)]
    model, processor = build_reference(captions, config="tiny", seed=0)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for number in range(10):
        Image.new("RGB", (40, 40), (25 * number, 90, 200)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"not an image")
    rows = "".join(f"{number}.png\t{caption}\n" for number, caption in enumerate(captions))
    (folder / "pairs.csv").write_text("file\ttext\n" + rows)
    return folder


def audit(folder, *flags):
    command = [sys.executable, SCRIPT, "--model", folder / "model", "--data", folder / "pairs.csv", "--device", "cpu"]
    columns = ["--image_column", "file", "--caption_column", "text", "--delimiter", "\\t"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run([*command, *columns, *flags], capture_output=True, text=True, env=environment)


def test_script(folder):
    flags = ["--output", folder / "audit.csv", "--forget_ratio", "0.25", "--batch_size", "4"]
    done = audit(folder, *flags)
    assert done.returncode == 0, done.stderr
    rows = read(folder / "audit.csv")
    assert len(rows) == 9 and "9 pairs, 2 suggested" in done.stdout
    assert "left out: 1 (undecodable)" in done.stderr
    confidence = [float(row["clean_confidence"]) for row in rows]
    assert confidence == sorted(confidence)
    assert sum(row["suggested_forget"] == "True" for row in rows) == 2
    assert "picture number 3" not in {row["caption"] for row in rows}
    with Image.open(folder / "audit.png") as sheet:
        assert sheet.width > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"--output: .*mine\.csv exists"),
        (["--overwrite", "--rounds", "0"], "--rounds must be at least 1"),
        (["--over"], "unrecognized arguments: --over"),
    ],
)
def test_wrong_flags_and_existing_output_are_told_in_a_line(words, message, folder, monkeypatch):
    spec = importlib.util.spec_from_file_location("audit_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (folder / "mine.csv").write_text("mine")
    flags = ["--model", "x", "--data", "x", "--output", str(folder / "mine.csv")]
    monkeypatch.setattr("sys.argv", ["audit_pairs.py", *flags, *words])
    with pytest.raises(InputError, match=message) as caught:
        script.main()
    assert "\n" not in str(caught.value)
    assert (folder / "mine.csv").read_text() == "mine"

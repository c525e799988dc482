"""Files with the truth of injected noise: what is in them, and the script that writes all pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ncu_hf.data import ground_truth
from ncu_hf.data.ground_truth import INJECTED_NOISE, keep_injected_noise, write_noisy_pairs
from ncu_hf.data.noise import NOISE_KINDS
from ncu_hf.data.sources.open import open_pairs
from ncu_hf.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "inject_noise.py"


@pytest.fixture
def pairs(tmp_path, png):
    """30 pairs, of which one has no image and one no caption."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = []
    for i in range(30):
        if i != 7:
            (folder / f"{i}.png").write_bytes(png(i))
        rows.append(f"{i}.png,{'' if i == 9 else f'the {i}th picture of {i % 4}'},{i % 4}")
    (folder / "pairs.csv").write_text("image_path,text_content,label\n" + "\n".join(rows) + "\n")
    return folder / "pairs.csv"


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_run_keeps_the_chosen_pairs(kind, pairs, tmp_path):
    source = open_pairs(str(pairs), noise_share=0.5, noise_kind=kind)
    plain = open_pairs(str(pairs))
    keep_injected_noise(source, tmp_path)
    rows = pq.read_table(tmp_path / INJECTED_NOISE).to_pylist()
    assert list(rows[0]) == ["key", "row", "mismatched", "caption", "original_caption"]
    assert len(rows) == 14 and [row["row"] for row in rows] == [i for i in range(30) if source[i].mismatched]
    for row in rows:
        record = source[row["row"]]
        assert (row["key"], row["mismatched"], row["caption"]) == (record.key, True, record.caption)
        assert row["original_caption"] == plain[row["row"]].caption != row["caption"]


def test_what_is_there_stays(pairs, tmp_path):
    (tmp_path / INJECTED_NOISE).write_bytes(b"of the run that goes on")
    keep_injected_noise(open_pairs(str(pairs), noise_share=0.5), tmp_path)
    assert (tmp_path / INJECTED_NOISE).read_bytes() == b"of the run that goes on"


def test_without_noise_there_is_no_file(pairs, tmp_path):
    (tmp_path / "run").mkdir()
    keep_injected_noise(open_pairs(str(pairs)), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_no_pair_chosen_is_an_empty_table(tmp_path, png):
    (tmp_path / "a.csv").write_text("image_path,text_content\na.png,one\n")
    keep_injected_noise(open_pairs(str(tmp_path / "a.csv"), noise_share=1.0), tmp_path)
    assert pq.read_table(tmp_path / INJECTED_NOISE).num_rows == 0


def test_captions_that_had_to_stay_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("image_path,text_content\n" + "a.png,one\n" * 4)
    keep_injected_noise(open_pairs(str(tmp_path / "a.csv"), noise_share=0.5), tmp_path)
    assert pq.read_table(tmp_path / INJECTED_NOISE)["mismatched"].to_pylist() == [False, False]


def test_a_file_that_is_not_finished_is_no_file(pairs, tmp_path):
    source = open_pairs(str(pairs), noise_share=0.5)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_noisy_pairs(source, tmp_path / "out" / "noisy.parquet", stop)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_all_pairs_can_be_read_again(group, pairs, tmp_path, png, monkeypatch):
    monkeypatch.setattr(ground_truth, "_GROUP_ROWS", group)
    source, told = open_pairs(str(pairs), noise_share=0.5, noise_kind="partial"), []
    assert write_noisy_pairs(source, tmp_path / "noisy.parquet", told.append) == 1
    assert sum(told) == 30
    again = open_pairs(str(tmp_path / "noisy.parquet"), image_column="image", caption_column="caption")
    for i in range(30):
        found, expected = again[i], source[i]
        assert (found.key, found.mismatched) == (expected.key, expected.mismatched)
        assert found.caption == (None if i == 9 else expected.caption)
        assert found.image == (None if i == 7 else png(i))
    originals = pq.read_table(tmp_path / "noisy.parquet")["original_caption"].to_pylist()
    assert originals == [caption or None for caption in open_pairs(str(pairs)).captions()]


def test_large_images_end_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(ground_truth, "_GROUP_BYTES", 1000)
    table = pa.table({"image": [bytes(300)] * 10, "caption": [str(i) for i in range(10)]})
    pq.write_table(table, tmp_path / "a.parquet")
    options = {"image_column": "image", "caption_column": "caption"}
    source = open_pairs(str(tmp_path / "a.parquet"), noise_share=0.5, **options)
    write_noisy_pairs(source, tmp_path / "noisy.parquet", print)
    metadata = pq.ParquetFile(tmp_path / "noisy.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 2]


# The script


@pytest.fixture
def inject(monkeypatch):
    spec = importlib.util.spec_from_file_location("inject_noise_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def start(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["inject_noise.py", *map(str, words)])
        script.main()

    return start


def test_script(inject, pairs, tmp_path, capfd):
    output = tmp_path / "noisy.parquet"
    noise = ["--noise_share", 0.5, "--noise_kind", "hard", "--noise_class_column", "label", "--noise_seed", 4]
    inject("--data", pairs, "--output", output, *noise, "--train_limit", 20)
    told = capfd.readouterr()
    assert told.out == f"20 pairs, 10 chosen, 10 mismatched: {output}\n"
    assert "without image, for it cannot be read: 1" in told.err
    source = open_pairs(
        str(pairs), noise_share=0.5, noise_kind="hard", noise_class_column="label", noise_seed=4, limit=20
    )
    table = pq.read_table(output).to_pydict()
    assert table["caption"] == [source[i].caption or None for i in range(20)]
    assert table["mismatched"] == [source[i].mismatched for i in range(20)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--noise_share", 0.5, "--output", "mine.parquet"], r"--output: .*mine\.parquet exists"),
        (["--noise_share", 0.5, "--output", "a.csv"], "--output must end in .parquet"),
        (["--noise_share", 0.5, "--output", "absent/a.parquet"], "absent does not exist"),
        (["--output", "a.parquet"], "--noise_share: give the share"),
        (["--noise_share", 2, "--output", "a.parquet"], "--noise_share is a share between 0 and 1, got 2.0"),
        (["--noise_share", 0.5, "--noise_kind", "hrad", "--output", "a.parquet"], "'hrad'. Did you mean 'hard'"),
        (["--noise_share", 0.5, "--noise_seed", -1, "--output", "a.parquet"], "--noise_seed must not be negative"),
        (["--noise_share", 0.5, "--data", ".", "--output", "a.parquet"], "a.parquet lies in --data"),
        (["--noise_share", 0.5, "--data", "*.parquet", "--output", "mine.parquet", "--overwrite"], "lies in --data"),
        (
            ["--noise_share", 0.5, "--data", "https://h/a.tar?key=x", "--output", "a.parquet"],
            r"a\.tar: is only read",
        ),
    ],
)
def test_wrong_flags_are_told_in_a_line(words, message, inject, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.parquet").write_text("mine")
    with pytest.raises(InputError, match=message) as caught:
        inject("--data", pairs, *words)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "mine.parquet").read_text() == "mine" and not (tmp_path / "a.parquet").exists()

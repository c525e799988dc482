"""Whole runs on a tiny CLIP: what the output folder holds, and that it does not depend on how the work is divided."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor, pipeline

from ncu_hf.data import Located, PairCollator
from ncu_hf.data.order import epoch_order
from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel, NegativePrompt
from ncu_hf.recipe import main
from ncu_hf.trainer import NCUTrainer

TOKEN = "hf_" + "s" * 34
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy"}


def read_strictly(path: Path) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# One whole run


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory, command) -> Iterator[tuple[Path, list[NCUTrainer]]]:
    """Output folder of a run with evaluation, and the trainers of its phases as they ended."""
    output = tmp_path_factory.mktemp("recipe") / "run"
    trainers, save_outcome = [], NCUTrainer.save_outcome

    def keep(trainer: NCUTrainer, folder: Path) -> None:
        trainers.append(trainer)
        save_outcome(trainer, folder)

    flags = command(output, eval_data=scenes, hub_token=TOKEN, forget_ratio=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NCUTrainer, "save_outcome", keep)
        patch.setattr(sys, "argv", ["ncu.py", *flags])
        main({})
    yield output, trainers


def test_layout(finished, clip_folder, tmp_path):
    output, _ = finished
    CLIPProcessor.from_pretrained(clip_folder).save_pretrained(tmp_path)
    model = {"config.json", "model.safetensors", "negative_prompt", *(path.name for path in tmp_path.iterdir())}
    evidence = {"README.md", "run.json", "results.json", "data_health.json", "outcomes.safetensors", "plots"}

    def names(*folder: str) -> set[str]:
        return {path.name for path in output.joinpath(*folder).iterdir()}

    assert names() == model | evidence | {"phases"}
    assert names("plots") == {"losses.png", "similarities.png"}
    assert names("negative_prompt") == {"config.json", "model.safetensors"}
    assert names("phases") == {"negative_prompt", "unlearning"}
    state = {"optimizer.json", "optimizer.safetensors", "scheduler.json", "trainer_state.json"}
    state |= {"data_health.json", "data_state.json"}
    for phase in names("phases"):
        assert names("phases", phase) == {"checkpoint-4", "checkpoint-6", "final"}
        card = {"README.md", "plots"}
        assert names("phases", phase, "final") == model | card | {"phase.json", "data_state.json"}
        assert names("phases", phase, "checkpoint-4") == model | card | state


def test_nothing_is_pickled(finished):
    files = [path for path in finished[0].rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix in PICKLES] == []
    # The first bytes of a pickle of protocol 2 to 5, and of the zip that `torch.save` writes.
    starts = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
    assert [path for path in files if path.read_bytes()[:4].startswith(starts)] == []


def test_every_folder_with_a_model_is_a_plain_clip(finished, clip_folder, load_plain):
    folders = [path.parent for path in finished[0].rglob("model.safetensors") if path.parent.name != "negative_prompt"]
    assert len(folders) == 1 + 2 * 3
    reference = CLIPModel.from_pretrained(clip_folder)
    for folder in folders:
        clip = load_plain(folder)
        assert clip.state_dict().keys() == reference.state_dict().keys()
        assert clip.config.to_dict().keys() == reference.config.to_dict().keys()


def test_the_result_is_the_trained_model(finished, clip_folder, embed, load_plain):
    output, (first, second) = finished
    processor = CLIPProcessor.from_pretrained(output)
    found = embed(load_plain(output), processor)
    for a, b in zip(found, embed(load_plain(output / "phases/unlearning/final"), processor), strict=True):
        assert a.equal(b)
    for a, b in zip(found, embed(second.model.clip, processor), strict=True):  # whose towers are leaner
        torch.testing.assert_close(a, b)
    trained = second.model.clip.state_dict()
    assert all(weight.equal(trained[name]) for name, weight in load_plain(output).state_dict().items())
    for other in (first.model.clip, CLIPModel.from_pretrained(clip_folder)):
        assert not any(a.equal(b) for a, b in zip(found, embed(other, processor), strict=True))


def test_the_phases_follow_each_other(finished, distance):
    """Phase 2 starts from the model and the prompt of phase 1, and leaves the prompt as it is."""
    output, (first, second) = finished
    phases = output / "phases"
    assert distance(phases / "negative_prompt/final", phases / "unlearning/final") > 0
    prompts = [first.model.negative_prompt.vectors, second.model.negative_prompt.vectors]
    prompts += [NegativePrompt.from_pretrained(output, subfolder="negative_prompt").vectors]
    assert prompts[0].equal(prompts[1])
    assert prompts[0].equal(prompts[2])
    assert prompts[0].shape == (8, 32)
    assert NCUModel.from_pretrained(output).negative_prompt.vectors.equal(prompts[0])
    assert not second.model.negative_prompt.vectors.requires_grad


def test_the_processor_comes_along(finished, clip_folder):
    found, expected = (CLIPProcessor.from_pretrained(folder) for folder in (finished[0], clip_folder))
    text = "a small red circle above two blue squares"
    assert found.tokenizer(text)["input_ids"] == expected.tokenizer(text)["input_ids"]
    assert found.image_processor.to_dict() == expected.image_processor.to_dict()
    classify = pipeline("zero-shot-image-classification", model=str(finished[0]))
    answer = classify(Image.new("RGB", (32, 32), "red"), candidate_labels=["red", "blue"])
    assert sum(label["score"] for label in answer) == pytest.approx(1, abs=1e-4)


def test_numbers(finished):
    output, _ = finished
    results = read_strictly(output / "results.json")
    sides = {
        "mean_recall": results["retrieval"]["held-out pairs"],
        "auroc": results["forget_set"],
        "positives": results["similarity"],
    }
    for measure, found in sides.items():
        # How well the forget set is found is measured on the outcome of each phase.
        assert list(found) == ["before", *(["negative_prompt"] if measure == "auroc" else []), "after"]
        assert measure in found["after"], found["after"].keys()
    assert results["data"]["n_pairs"] == 96
    assert [(phase["name"], phase["steps"], phase["epochs"]) for phase in results["phases"]] == [
        ("negative_prompt", 6, 1),
        ("unlearning", 6, 1),
    ]
    assert results["paper_hyperparameters"]["global_batch_size"] == 2048
    assert results["hyperparameters"]["global_batch_size"] == 16
    assert results["prompt"] == {"folder": "negative_prompt", "length": 8}
    health = read_strictly(output / "data_health.json")
    assert (health["seen"], health["skipped"], health["bad_fraction"]) == (2 * 96, 0, 0)


def test_card(finished):
    text = (finished[0] / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert {"clip", "noisy-correspondence"} <= set(card.data.tags)
    assert card.data.model_name == "run"
    assert len(card.data.eval_results) == 7  # six recalls and their mean
    assert "nan" not in text.lower().split()
    assert "None" not in text
    for link in ("plots/losses.png", "plots/similarities.png", "negative_prompt/"):
        assert link in text
        assert (finished[0] / link).exists()


def test_every_checkpoint_has_a_card_that_says_what_it_is(finished):
    folders = [path.parent for path in finished[0].glob("phases/*/*/model.safetensors")]
    assert len(folders) == 6
    for folder in folders:
        text = (folder / "README.md").read_text(encoding="utf-8")
        step = 6 if folder.name == "final" else int(folder.name.split("-")[1])
        assert f"step {step} of 6" in text and "not the final model" in text
        assert "None" not in text and "Image-text retrieval" not in text
        assert (folder / "plots" / "losses.png").stat().st_size > 5_000
        card = ModelCard(text)
        assert card.data.pipeline_tag == "zero-shot-image-classification" and not card.data.eval_results


def test_the_cards_of_trainer_do_not_replace_ours(finished):
    trainer = finished[1][1]
    trainer.create_model_card(model_name="someone's", tags=["other"])
    text = Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")
    assert "\n# run\n" in text and "Noisy Correspondence Unlearning" in text and "someone" not in text


def test_no_access_token_is_written(finished):
    found = [path for path in finished[0].rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert found == []
    assert "--forget_ratio 0.25" in read_strictly(finished[0] / "results.json")["command"]


# Further sets


def labelled_folder(folder: Path) -> Path:
    folder.mkdir()
    for row in range(9):
        Image.new("RGB", (20, 20), ("red", "green", "blue")[row % 3]).save(folder / f"{row}.png")
    lines = "".join(f"{row}.png,{row % 3}\n" for row in range(9))
    (folder / "labels.csv").write_text(f"image,label\n{lines}")
    classes = {"classes": ["red", "green", "blue"], "templates": ["a {c} thing"]}
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def test_further_sets_are_measured_before_and_after_and_told_by_the_card(recipe, scenes, tmp_path):
    folder = labelled_folder(tmp_path / "colours")
    output = recipe(eval_data=scenes, eval_sets=f"{folder}, {scenes}", method="clip", license="mit", language="en")
    results = read_strictly(output / "results.json")
    assert set(results["zero_shot"]) == {"colours"} and set(results["zero_shot"]["colours"]) == {"before", "after"}
    assert set(results["retrieval"]) == {"held-out pairs", "scenes.parquet"}
    found = [results["retrieval"][name]["after"]["mean_recall"] for name in results["retrieval"]]
    assert found[0] == found[1]
    card = ModelCard((output / "README.md").read_text(encoding="utf-8"))
    assert (card.data.license, card.data.language) == ("mit", ["en"])
    assert {result.dataset_name for result in card.data.eval_results} == {"colours", *results["retrieval"]}
    assert "| colours |" in card.text or "colours (3 classes)" in card.text


def test_a_plan_fetches_no_further_set(recipe, tmp_path, capfd):
    recipe(eval_sets="paper,retrieval", plan="true", method="clip", max_steps=2)  # offline: opening one would fail
    assert "contrastive" in capfd.readouterr().out
    with pytest.raises(InputError, match="cifar10"):
        recipe(eval_sets="cifar1O", plan="true")


def test_a_further_set_that_is_not_there_is_told_before_training(recipe, tmp_path):
    with pytest.raises(InputError, match="cifar10"):
        recipe(eval_sets="cifar1O")
    assert not (tmp_path / "run").exists()


# Methods and settings


@pytest.mark.parametrize(
    "changes",
    [
        {"formulation": "paper"},
        {"forget_ratio": 0},
        {"bf16": "true"},
        {"augment_negative_captions": "true"},
        {"streaming": "true", "train_pairs": 96},
        pytest.param({"formulation": "paper", "forget_ratio": 0.9}, marks=pytest.mark.slow),
        pytest.param({"random_crop": "false"}, marks=pytest.mark.slow),
        pytest.param({"noise_share": 0.5}, marks=pytest.mark.slow),
        pytest.param({"max_grad_norm": 1, "optim": "sgd"}, marks=pytest.mark.slow),
    ],
)
def test_settings(changes, recipe, clip_folder, load_plain):
    output = recipe(**changes)
    clip = load_plain(output)
    assert all(weight.isfinite().all() and weight.dtype == torch.float32 for weight in clip.state_dict().values())
    assert not clip.logit_scale.equal(CLIPModel.from_pretrained(clip_folder).logit_scale)
    read_strictly(output / "results.json")
    assert "None" not in (output / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"noise_kind": "hard", "noise_class_column": "color"},
            "one of the same `color` (noise `hard`, seed 3)",
        ),
        pytest.param({"noise_kind": "partial"}, "another one (noise `partial`, seed 3)", marks=pytest.mark.slow),
        pytest.param({}, "shuffled on purpose among 25 % of them (noise `shuffled`, seed 3)", marks=pytest.mark.slow),
    ],
)
def test_a_run_keeps_the_truth_of_its_noise(changes, told, recipe, scenes, monkeypatch):
    """The file names what the loader yields; a resume leaves it as it is."""
    noise = {"noise_share": 0.25, "noise_seed": 3, **changes}
    trained, collate = {}, PairCollator.__call__

    def keep(collator: PairCollator, located: list[Located], seed: int):
        trained.update({one.record.key: (one.record.caption, one.record.mismatched) for one in located})
        return collate(collator, located, seed=seed)

    monkeypatch.setattr(PairCollator, "__call__", keep)
    output = recipe(**noise, method="clip")
    path = output / "injected_noise.parquet"
    rows = pq.read_table(path).to_pylist()
    stored = dict(zip(*pq.read_table(scenes, columns=["key", "caption"]).to_pydict().values(), strict=True))
    assert len(rows) == 24 and len(trained) == 96
    changed = {row["key"]: row["caption"] for row in rows if row["mismatched"]}
    assert changed == {key: caption for key, (caption, _) in trained.items() if caption != stored[key]}
    assert all(trained[key][1] for key in changed)
    assert {row["key"]: row["original_caption"] for row in rows} == {row["key"]: stored[row["key"]] for row in rows}
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"{told}: {len(changed)} pairs do not match" in card
    assert read_strictly(output / "results.json")["data"]["noise_mismatched"] == len(changed)
    before = path.stat().st_mtime_ns
    recipe(**noise, method="clip", resume_from_checkpoint="true")
    assert path.stat().st_mtime_ns == before
    assert [found.name for found in output.iterdir() if "injected" in found.name] == [path.name]


def test_clip_from_scratch(recipe, load_plain):
    output = recipe(model=None, model_config="tiny", vocab_size=600, method="clip")
    clip, initial = load_plain(output), load_plain(output / "initial")
    assert clip.state_dict().keys() == initial.state_dict().keys()
    assert not clip.logit_scale.equal(initial.logit_scale)
    assert not (output / "negative_prompt").exists()
    assert {path.name for path in (output / "phases").iterdir()} == {"contrastive"}
    results = read_strictly(output / "results.json")
    assert set(results["forget_set"]) == {"after"}
    assert "paper_hyperparameters" not in results
    assert "negative" not in (output / "README.md").read_text(encoding="utf-8").lower().replace("negatives", "")
    processor = CLIPProcessor.from_pretrained(output)
    assert processor.tokenizer.model_max_length == clip.config.text_config.max_position_embeddings


def test_clip_continued(recipe, clip_folder, distance):
    output = recipe(method="clip")
    assert not (output / "negative_prompt").exists()
    assert distance(output, clip_folder) > 0
    assert set(read_strictly(output / "results.json")["forget_set"]) == {"before", "after"}


def test_from_scratch_on_data_with_holes(recipe, scenes, tmp_path):
    """A missing caption is skipped in training, so the tokenizer has to do without it too."""
    table = pq.read_table(scenes, columns=["image", "caption"])
    captions = table.column("caption").to_pylist()
    captions[3], captions[40] = None, "  "
    path = tmp_path / "pairs.parquet"
    pq.write_table(table.set_column(1, "caption", pa.array(captions, pa.string())), path)
    output = recipe(train_data=path, model=None, model_config="tiny", vocab_size=600, method="clip")
    assert read_strictly(output / "data_health.json")["reasons"] == {"missing_caption": 1, "empty_caption": 1}


def test_overwriting_starts_from_new_weights(recipe, distance):
    """Also where the earlier run has left the model that it started from."""
    scratch = {"model": None, "model_config": "tiny", "vocab_size": 600, "method": "clip", "max_steps": 1}
    recipe("first", **scratch)
    recipe("second", **scratch, seed=7)
    recipe("first", **scratch, seed=7, overwrite_output_dir="true")
    first, second = recipe("first", **scratch, seed=7, resume_from_checkpoint="true"), recipe("third", **scratch)
    folder = first.parent
    assert distance(folder / "first", folder / "second") == 0
    assert distance(folder / "first" / "initial", folder / "second" / "initial") == 0
    assert distance(folder / "first", second) > 0


# However the work is divided


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"chunk_size": 5}, 1e-5), pytest.param({"dataloader_num_workers": 2}, 0, marks=pytest.mark.slow)],
)
def test_chunks_and_workers_change_nothing(changes, tolerance, recipe, finished, distance):
    # Adam's step on a gradient of rounding errors is one of full size: a larger epsilon makes it what it should be.
    steady = {"adam_epsilon": 1e-2, "learning_rate": 1e-3}
    whole, cut = recipe("whole", **steady), recipe("cut", **steady, **changes)
    assert distance(cut, whole) <= tolerance
    assert distance(whole, finished[0]) > 100 * tolerance


# Records that cannot be used


def with_unreadable_images(scenes: Path, rows: list[int], folder: Path) -> Path:
    table = pq.read_table(scenes, columns=["key", "image", "caption"])
    columns = table.to_pydict()
    stored = [image["bytes"] if isinstance(image, dict) else image for image in columns["image"]]
    columns["image"] = [b"no image" if row in rows else image for row, image in enumerate(stored)]
    path = folder / "pairs.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_an_unreadable_image_is_skipped_and_counted(recipe, scenes, tmp_path, capfd):
    path = with_unreadable_images(scenes, [50], tmp_path)
    output = recipe(train_data=path, eval_data=scenes)
    health = read_strictly(output / "data_health.json")
    assert (health["seen"], health["skipped"], health["reasons"]) == (192, 2, {"undecodable": 2})  # once an epoch
    assert health["bad_fraction"] == pytest.approx(2 / 192)
    assert [example[0] for example in health["examples"]["undecodable"]] == ["scene-0000050"]
    assert "| skipped: undecodable | 2 | scene-0000050 (pairs.parquet) |" in capfd.readouterr().out
    assert "192" in (output / "README.md").read_text(encoding="utf-8")


def test_too_many_unreadable_images(recipe, scenes, tmp_path, monkeypatch, capfd, command):
    path = with_unreadable_images(scenes, list(range(0, 96, 8)), tmp_path)
    flags = command(tmp_path / "run", train_data=path)
    monkeypatch.setattr(sys, "argv", ["ncu.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        main({})
    assert stopped.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error: ", "Traceback"))]
    for part in ("12 of 96 records", "12.5%", "'undecodable'", "--max_bad_fraction"):
        assert part in line
    assert not (tmp_path / "run" / "model.safetensors").exists()
    output = recipe(train_data=path, max_bad_fraction=0.2, resume_from_checkpoint="true")  # as the line says
    assert read_strictly(output / "data_health.json")["reasons"] == {"undecodable": 24}


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(scenes, clip_folder, tmp_path, launch, command, distance):
    """The second process cannot use a single record of its part of the second batch, and still takes part."""
    second = epoch_order(96, seed=42, epoch=0)[16 + 8 : 16 + 16].tolist()
    path = with_unreadable_images(scenes, second, tmp_path)
    changes = {
        "train_data": path,
        "eval_data": scenes,
        "max_bad_fraction": 1.0,
        "adam_epsilon": 1e-2,
        "learning_rate": 1e-3,
        "negative_prompt_learning_rate": 1e-3,
    }
    one = tmp_path / "one"
    launch(1, "recipes/ncu.py", *command(one, **changes))
    done = launch(2, "recipes/ncu.py", *command(tmp_path / "two", **changes))
    assert distance(tmp_path / "two", one) < 1e-4
    before, after = load_file(clip_folder / "model.safetensors"), load_file(one / "model.safetensors")
    assert max((before[name] - after[name]).abs().max().item() for name in before) > 1e-3
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(lines) == 12
    assert done.stdout.count("mean recall") == 1
    found, expected = (read_strictly(folder / "data_health.json") for folder in (tmp_path / "two", one))
    assert (found["seen"], found["reasons"]) == (expected["seen"], expected["reasons"]) == (192, {"undecodable": 16})
    results = read_strictly(tmp_path / "two" / "results.json")
    assert math.isfinite(results["retrieval"]["held-out pairs"]["after"]["mean_recall"])

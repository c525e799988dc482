"""Weights that are spread over two processes learn what whole ones learn, and are saved and resumed as whole ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ncu_hf.checkpoint import read_json
from ncu_hf.errors import InputError
from ncu_hf.sharding import check_shardable

RECIPE = "recipes/ncu.py"
PHASES = ("negative_prompt", "unlearning")


def apart(found: Path, expected: Path) -> float:
    """Largest difference of a weight of two results. The bias of a key has no gradient but rounding errors, since
    attention is the same for any of them, and AdamW makes whole steps of these."""
    a, b = (load_file(output / "model.safetensors") for output in (found, expected))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a if not name.endswith("k_proj.bias"))


def losses(output: Path) -> list[float]:
    """Loss of each step of both phases."""
    lines = (read_json(output / "phases" / name / "final/phase.json")["log_history"] for name in PHASES)
    return [line["loss"] for phase in lines for line in phase if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": 3, "negative_rank": 2},
        {"max_grad_norm": 0.5, "gradient_accumulation_steps": 2},
        {"bf16": "true", "gradient_checkpointing": "true"},
        {"method": "softclip"},
    ],
    ids=str,
)
def test_a_sharded_run_is_the_whole_one(changes, command, launch, tmp_path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    launch(2, RECIPE, *command(whole, **changes))
    launch(2, RECIPE, *command(sharded, **changes, shard_weights="true"))
    assert apart(sharded, whole) < 1e-5
    if changes.get("method") != "softclip":
        assert losses(sharded) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_with_the_other_kind_of_weights(before, command, launch, tmp_path):
    """A checkpoint does not tell how the weights were held."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(2, RECIPE, *command(whole))
    launch(2, RECIPE, *command(cut, shard_weights=str(before)))
    folder = cut / "phases" / "unlearning"
    for name in ("final", "checkpoint-6"):  # as if killed behind step 4
        shutil.rmtree(folder / name)
    assert (folder / "checkpoint-4").is_dir()
    launch(2, RECIPE, *command(cut, shard_weights=str(not before), resume_from_checkpoint="true"))
    assert apart(cut, whole) < 1e-5


def test_processes_need_not_agree_on_how_often_they_encode(launch, tmp_path):
    """A text tower is called as often as the lengths of a process' captions ask for."""
    launch(2, "tests/workers/sharded_step.py", tmp_path / "found.json")
    found = read_json(tmp_path / "found.json")
    assert len(found) == 4
    for numbers in found.values():
        assert numbers["difference"] < 1e-6
        first, second = numbers["processes"]
        assert first["calls"] < second["calls"]
        assert first["held"] == pytest.approx(0.5, abs=0.01) and second["held"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_the_plan_of_a_sharded_run(command, launch, tmp_path):
    def plan(**changes) -> dict[str, list[float]]:
        printed = launch(2, RECIPE, *command(tmp_path / "run", **changes), "--plan").stdout
        lines = {
            name: re.search(rf"^ *{name} .*$", printed, flags=re.MULTILINE)[0] for name in ("weights", "optimizer")
        }
        return {name: [float(number) for number in re.findall(r"[\d.]+", line)] for name, line in lines.items()}

    whole, sharded = plan(), plan(shard_weights="true")
    assert sharded["optimizer"] == pytest.approx([n / 2 for n in whole["optimizer"]], rel=0.02)
    assert sharded["weights"] == pytest.approx([1.5 * n for n in whole["weights"]], rel=0.02)


def test_one_process_has_nothing_to_share(trainers_of):
    with pytest.raises(InputError, match="--num_processes"):
        trainers_of("ncu", shard_weights="true")


@pytest.mark.slow
def test_a_method_that_cannot_share_is_refused(command, launch, tmp_path):
    done = launch(2, RECIPE, *command(tmp_path / "run", method="sdd", shard_weights="true"), check=False)
    assert done.returncode == 1
    assert done.stderr.count("--shard_weights does not go together with --method sdd") == 1


def test_what_does_not_go_together_is_refused():
    check_shardable(2, {"--torch_compile": False, "--fp16": False})
    with pytest.raises(InputError, match="--fp16"):
        check_shardable(2, {"--torch_compile": False, "--fp16": True})

"""Numbers on every pair, shared by processes: W processes and chunks of any size are one process and one batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

# Float64 gradients; weights and thresholds come from a pass in float32, which is the same for any sharing.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
FLAGS = {
    "method": "sdd",
    "global_batch_size": 24,
    "sdd_clean_threshold": 0.2,
    "sdd_drop_threshold": 0.05,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "report_to": "none",
}


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_and_chunks_give_the_gradient_of_one(processes, scene_options, words, tmp_path, launch):
    flags = words({**scene_options, **FLAGS, "output_dir": tmp_path / "run"})
    for count, chunk_sizes in ((1, "0"), (processes, "0,5")):
        (tmp_path / str(count)).mkdir()
        launch(count, "tests/workers/gradients.py", tmp_path / str(count), chunk_sizes, *flags)
    for dtype, tolerance in TOLERANCE.items():
        expected = load_file(tmp_path / f"1/self_drop.{dtype}.0.safetensors")
        for chunk_size in (0, 5):
            found = load_file(tmp_path / f"{processes}/self_drop.{dtype}.{chunk_size}.safetensors")
            assert found.keys() == expected.keys()
            for name, gradient in found.items():
                size = expected[name.replace("k_proj.bias", "q_proj.bias")].norm()
                assert ((gradient - expected[name]).norm() / size).item() < tolerance, (name, dtype, chunk_size)


@pytest.mark.parametrize("drop", [0.05, 0.36])
def test_a_run_of_two_processes_ends_where_one_does(drop, command, tmp_path, launch, distance):
    """Over an epoch's border. The higher threshold keeps 4 of 96 pairs: processes, and whole batches, without any."""
    runs = {}
    for processes in (1, 2):
        runs[processes] = tmp_path / str(processes)
        changes = {**FLAGS, "num_train_epochs": 2, "learning_rate": 1e-4, "optim": "sgd", "sdd_drop_threshold": drop}
        launch(processes, "recipes/ncu.py", *command(runs[processes], **changes))
    states = [load_file(run / "phases/self_drop/checkpoint-8/sample_state.safetensors") for run in runs.values()]
    assert states[0]["partners"].equal(states[1]["partners"]) and states[0]["kept"].equal(states[1]["kept"])
    torch.testing.assert_close(states[0]["confidence"], states[1]["confidence"], rtol=0, atol=1e-4)
    assert distance(runs[1], runs[2]) < 1e-6

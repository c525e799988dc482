"""W processes with N/W rows each give the loss and the gradients of one process with all rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ncu_hf.config import FORMULATIONS

N, D = 41, 12
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
METHODS = {
    torch.float64: ("ncu", "ncu_max_distance", "ncu_false_negatives_only", "ncu_false_positives_only"),
    torch.float32: ("ncu",),
}


def write_batch(path, dtype: torch.dtype, n: int = N) -> None:
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn(n, D, generator=generator, dtype=torch.float64) for _ in range(3)]
    text = F.normalize(noise[0], dim=-1)
    image, negative = F.normalize(text + noise[1] / 2, dim=-1), F.normalize(noise[2] / 2 - text, dim=-1)
    batch = {"image": image, "text": text, "negative": negative, "log_scale": torch.tensor(math.log(20.0)).double()}
    save_file({key: value.to(dtype) for key, value in batch.items()}, path)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("sizes", ["20,21", pytest.param("13,0,28", marks=pytest.mark.slow)])
def test_shards_make_one_batch(sizes, dtype, tmp_path, launch):
    inputs, whole, parts = (tmp_path / f"{name}.safetensors" for name in ("inputs", "whole", "parts"))
    write_batch(inputs, dtype)
    launch(1, "tests/workers/shards.py", inputs, whole, N, *METHODS[dtype])
    launch(1 + sizes.count(","), "tests/workers/shards.py", inputs, parts, sizes, *METHODS[dtype])
    expected, found = load_file(whole), load_file(parts)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        name = key.rsplit(".", 1)[-1]
        if key.startswith("peak.") or name == "reduced_vectors":
            continue
        # Converged plans in float32 are at the edge of their precision: the path to them may differ by a step.
        if name in ("plan_iterations", "plan_marginal_error"):
            assert value.item() == pytest.approx(found[key].item(), rel=0.2, abs=3e-6), key
            continue
        size = max(value.abs().max().item(), 1e-3)
        assert (found[key] - value).abs().max() <= TOLERANCE[dtype] * size, key
    # One all-reduce an iteration has a vector of both plans; few more for marginals, the confidence, masses, softmax.
    iterations = int(found["plan_iterations"])
    assert 0 < iterations <= 100
    assert iterations < found["reduced_vectors"] <= 100 + 20


@pytest.mark.slow
def test_memory_of_a_process_falls_as_its_rows(tmp_path, launch):
    inputs, whole, parts = (tmp_path / f"{name}.safetensors" for name in ("inputs", "whole", "parts"))
    n = 320
    write_batch(inputs, torch.float32, n)
    launch(1, "tests/workers/shards.py", inputs, whole, n, "ncu")
    launch(2, "tests/workers/shards.py", inputs, parts, f"{n // 2},{n // 2}", "ncu")
    expected, found = load_file(whole), load_file(parts)
    for formulation in FORMULATIONS:
        assert found[f"peak.{formulation}"] < 0.6 * expected[f"peak.{formulation}"], formulation

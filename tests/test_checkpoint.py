"""Training state in files: what is written is what is read."""

from __future__ import annotations

import torch

from ncu_hf.checkpoint import load_optimizer, save_optimizer


def test_the_state_of_an_optimizer_survives(tmp_path):
    shared = torch.arange(6.0)  # one table for all parameters, as 8-bit optimizers have
    state = {
        "state": {
            0: {"step": 0.1, "exp_avg": torch.randn(2, 3).T, "table": shared},
            1: {"step": 2, "exp_avg": torch.randn(4), "table": shared, "part": shared[2:4]},
        },
        "param_groups": [{"lr": 1 / 3, "params": [0, 1]}],
    }
    save_optimizer(state, tmp_path)
    found = load_optimizer(tmp_path)
    assert found["param_groups"] == state["param_groups"]
    for index, values in state["state"].items():
        assert found["state"][index].keys() == values.keys()
        for key, value in values.items():
            same = found["state"][index][key]
            assert same.equal(value) if isinstance(value, torch.Tensor) else same == value

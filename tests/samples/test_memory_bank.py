"""The nearest clean pairs, by trying all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ncu_hf.samples import memory_bank
from ncu_hf.samples.memory_bank import nearest_clean

CPU = torch.device("cpu")


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("block", [1, 4, 1024])
@pytest.mark.parametrize("clean", [[5], [0, 3, 4, 9, 10], list(range(11))])
def test_each_pair_has_its_nearest_clean_image_and_text(clean, block, monkeypatch):
    monkeypatch.setattr(memory_bank, "_BLOCK", block)
    image, text = unit(11, 0), unit(11, 1)
    found = nearest_clean(image, text, torch.tensor(clean), CPU)
    for i in range(11):
        best = [max(clean, key=lambda j: (embeds[i] @ embeds[j]).item()) for embeds in (image, text)]
        assert found[i].tolist() == best
    assert found.dtype == torch.int64 and found.shape == (11, 2)


def test_a_clean_pair_is_its_own_entry_and_others_never_are():
    clean = torch.tensor([1, 4, 6])
    found = nearest_clean(unit(8, 2), unit(8, 3), clean, CPU)
    assert all(found[i].tolist() == [i, i] for i in clean.tolist())
    assert set(found.flatten().tolist()) <= set(clean.tolist())

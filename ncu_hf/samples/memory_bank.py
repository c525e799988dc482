"""Which clean pair resembles a pair most, by its image and by its text."""

from __future__ import annotations

import torch
from torch import Tensor

from ncu_hf.evaluation.sharing import cut, gather_batches, own_share

# Rows whose similarities to all clean pairs are held at a time; fixed, so that the result is that of any sharing.
_BLOCK = 1024


@torch.no_grad()
def nearest_clean(image: Tensor, text: Tensor, clean: Tensor, device: torch.device) -> Tensor:
    """For each pair the clean pair whose image is nearest to its image, and the one whose text is nearest to its text.

    As in the authors' release, a pair is not kept from being its own nearest: a clean pair is its own entry. A
    collective: the processes share the work.

    Args:
        image, text (`Tensor`): (n, D) unit vectors of all pairs.
        clean (`Tensor`): (c,) indices of the clean pairs, at least one.
        device (`torch.device`): Where the products are computed, and of the collective.

    Returns:
        `Tensor`: (n, 2) int64 on the CPU, indices out of `clean`.
    """
    banks = [embeds[clean].to(device) for embeds in (image, text)]
    batches = cut(range(len(image)), _BLOCK)
    parts = []
    for rows in own_share(batches):
        block = slice(rows[0], rows[-1] + 1)
        queries = (image[block].to(device), text[block].to(device))
        best = [(query @ bank.T).argmax(dim=1) for query, bank in zip(queries, banks, strict=True)]
        parts.append(clean[torch.stack(best, dim=1).cpu()])
    return gather_batches(parts, batches, 2, device, torch.int64)

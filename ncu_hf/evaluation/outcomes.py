"""The outcome on each item, kept in a file: what a paired test of models of different runs needs.

```
<side>/<group>/<set>/labels, ranks                                              of a classification
<side>/<group>/<set>/image_ranks, caption_ranks, image_groups, caption_groups   of retrieval
```

Metadata hold, for each `<side>/<group>/<set>`, the stamp of its images: sets of one stamp hold the same images in the
same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ncu_hf.errors import InputError, one_line
from ncu_hf.evaluation.pairwise import RetrievalItems, ZeroShotItems
from ncu_hf.evaluation.suites import Measurement

OUTCOMES_FILE = "outcomes.safetensors"  # in a run's folder; it is not published


class Outcome(NamedTuple):
    """What one model achieved on each item of one set.

    Attributes:
        items (`ZeroShotItems` or `RetrievalItems`): The outcomes.
        images (`str`): Stamp of the images.
    """

    items: ZeroShotItems | RetrievalItems
    images: str


# Side (`before`, `after`) -> (group, set) -> outcome.
Outcomes = dict[str, dict[tuple[str, str], Outcome]]


def save_outcomes(path: Path, sides: Mapping[str, Sequence[Measurement]]) -> None:
    """Write what was measured of each side."""
    tensors, stamps = {}, {}
    for side, measured in sides.items():
        for one in measured:
            place = "/".join((side, one.group, one.name.replace("/", "_")))
            stamps[place] = one.images
            # Copied: two sides may share their labels, which the format refuses.
            tensors |= {f"{place}/{name}": part.clone() for name, part in _parts(one.items).items()}
    save_file(tensors, path, stamps)


def load_outcomes(path: Path) -> Outcomes:
    """Read what [`save_outcomes`] wrote.

    Raises:
        InputError: no such file, or another one.
    """
    sides: Outcomes = {}
    try:
        with safe_open(path, framework="pt") as file:
            for place, stamp in (file.metadata() or {}).items():
                names = [name for name in file.keys() if name.startswith(f"{place}/")]  # noqa: SIM118
                parts = {name.removeprefix(f"{place}/"): file.get_tensor(name) for name in names}
                side, group, name = place.split("/")
                sides.setdefault(side, {})[group, name] = Outcome(_items(parts), stamp)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: outcomes cannot be read ({one_line(error)}).") from error
    return sides


def _parts(items: ZeroShotItems | RetrievalItems) -> dict[str, Tensor]:
    if isinstance(items, ZeroShotItems):
        return {"labels": items.labels, "ranks": items.ranks}
    names = ("image_ranks", "caption_ranks", "image_groups", "caption_groups")
    return dict(zip(names, (*items.ranks, *items.groups), strict=True))


def _items(parts: dict[str, Tensor]) -> ZeroShotItems | RetrievalItems:
    parts = {name: part.to(torch.long) for name, part in parts.items()}
    if "labels" in parts:
        return ZeroShotItems(parts["ranks"], parts["labels"])
    return RetrievalItems(
        (parts["image_ranks"], parts["caption_ranks"]), (parts["image_groups"], parts["caption_groups"])
    )

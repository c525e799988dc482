"""What the benchmarks share: a subcommand, its tables, and fair timing."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]
# name -> rows with the same keys
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Benchmark:
    """A subcommand: what it measures, how to add its own flags, how to run it."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Tables]


def alternate(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each variant; round after round each runs once, so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # turn 0 is the warm-up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each variant, see [`alternate`]."""
    return {name: statistics.median(times) for name, times in alternate(variants, repeats, device).items()}

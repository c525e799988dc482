"""Means of what a step reports, between two lines of the log."""

from __future__ import annotations

import time

from torch import Tensor


class RunningMeans:
    """Sums on the device, read only when a line is logged. A key is averaged over the steps that had it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._samples = 0
        self._wait = 0.0
        self._steps = 0
        self._start = time.perf_counter()

    def add(self, outputs: dict[str, Tensor], *, samples: int, wait: float) -> None:
        """Add one step.

        Args:
            outputs (`dict[str, Tensor]`): 0-dim tensors.
            samples (`int`): Pairs of the step, over all processes.
            wait (`float`): Seconds that the step waited for its batch.
        """
        for key, value in outputs.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._samples += samples
        self._wait += wait
        self._steps += 1

    def drain(self) -> dict[str, float]:
        """The means since the last call, the rate, and the wait for data: milliseconds a step, share of the time."""
        means = {key: value.item() / self._counts[key] for key, value in self._sums.items()}
        elapsed = time.perf_counter() - self._start
        means["samples_per_second"] = self._samples / elapsed
        means["data_wait_ms"] = 1000 * self._wait / max(self._steps, 1)
        means["data_wait_share"] = self._wait / elapsed
        self._reset()
        return means

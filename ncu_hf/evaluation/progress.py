"""How far an encoding is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts what is done; shown by the first process only.

    Args:
        total (`int`): How many there are.
        what (`str`): Of what, e.g. `"images"`.
        shown (`bool`): Whether this process shows it.
    """

    def __init__(self, total: int, what: str, shown: bool):
        self._total, self._what, self._shown, self._done = total, what, shown, 0
        self._started = self._told = time.monotonic()
        self._bar = tqdm(total=total, desc=f"encoding {what}", unit="", leave=False) if self._on_terminal else None

    @property
    def _on_terminal(self) -> bool:
        return self._shown and sys.stderr.isatty()

    def update(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            logger.info(self._line(self._told - self._started))

    def _line(self, seconds: float) -> str:
        left = timedelta(seconds=round(seconds * (self._total - self._done) / self._done))
        return f"encoding {self._what}: {self._done:,} of {self._total:,}, {self._done / seconds:,.0f}/s, {left} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

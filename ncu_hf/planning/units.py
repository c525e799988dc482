"""Numbers as a person reads them."""

from __future__ import annotations

from datetime import timedelta

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def count(number: float) -> str:
    """`1234567.2` -> `1,234,567`."""
    return f"{round(number):,}"


def size(number: float) -> str:
    """Bytes in the largest fitting unit, three digits: `3.42 GiB`."""
    power = 0
    while number >= 1000 and power < len(_UNITS) - 1:
        number, power = number / 1024, power + 1
    digits = 0 if power == 0 or number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """`0.31 s`, `12 s`, or `1:02:03`."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))

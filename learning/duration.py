"""Spans of time as options have them: `90s`, `15m`, `6h`, `1d`, `0`."""

from __future__ import annotations

import re

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError, which says how one is written."""
    text = text.strip()
    if text == "0":
        return 0.0
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration: write 90s, 15m, 6h, 1d or 0")
    return float(found[1]) * _UNITS[found[2]]


def in_words(seconds: float) -> str:
    """In the largest unit that leaves a number of at least 1, rounded to two digits."""
    for unit in ("d", "h", "m"):
        if abs(seconds) >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.2g}{unit}"
    return f"{seconds:.0f}s"

"""Times as callers write them: ISO 8601, or epoch seconds or milliseconds."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MILLISECONDS_FROM = 1e11
"""A number of at least this size is milliseconds: as seconds it would be after the year 5000."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_MS = -62_135_596_800_000  # year 1
LATEST_MS = 253_402_300_799_999  # year 9999


def parse_time(value: object) -> int:
    """Epoch milliseconds of a time; a zone that is not given is UTC.

    Raises:
        ValueError: neither ISO 8601 nor a finite number between the years 1 and 9999.
    """
    ms = _milliseconds(value)
    if not EARLIEST_MS <= ms <= LATEST_MS:
        raise ValueError("must lie between the years 1 and 9999")
    return ms


def _milliseconds(value: object) -> int:
    if isinstance(value, str):
        text = value
        try:
            value = float(text)
        except ValueError:
            return _parse_iso(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be ISO 8601, or epoch seconds or milliseconds")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return round(value if abs(value) >= MILLISECONDS_FROM else value * 1000)


def _parse_iso(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be ISO 8601, or epoch seconds or milliseconds") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # In whole numbers: a float of seconds is too coarse for milliseconds of a far year.
    return ((moment - EPOCH) // timedelta(microseconds=1) + 500) // 1000


def iso(ms: int) -> str:
    """ISO 8601 with milliseconds, in UTC."""
    seconds, rest = divmod(ms, 1000)
    return f"{_iso_seconds(seconds)}.{rest:03}Z"


@lru_cache(64)  # what is written at once is mostly of the same second
def _iso_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()

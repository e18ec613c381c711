"""Times as callers write them, wherever they do: in a request, in a log, in a command.

A time is epoch milliseconds once it is read. It is written as

* a number, or the text of one (`-1.5e9`; digits, sign, point and exponent, nothing else): epoch
  seconds, from 1e11 on, as far below zero as above, milliseconds, from 5e14 on microseconds, from
  5e17 on nanoseconds;
* a whole number that is a date of the years 1900 to 2100, YYYYMMDD or YYYYMMDDHHMMSS: that date,
  not seconds of 1970 or milliseconds of 2600;
* ISO 8601 as Python reads it, UTC where no zone is given; ` UTC` and a blank before the offset are
  taken too.

Fractions of a millisecond are rounded to the nearest one: a half to the even of two in a number of
seconds or milliseconds, up elsewhere. Blanks around a text don't matter. It lies between the years
1 and 9999.

`parse_time` reads one, `model.time_columns.parse_times` a column; they agree on everything but an
empty text, which in a column is UNKNOWN_TIME.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MILLISECONDS_FROM = 1e11
"""A number of at least this size is milliseconds: as seconds it would be after the year 5000."""
MICROSECONDS_FROM = 5e14
"""As milliseconds it would be after the year 9999, as microseconds it is from 1985 on."""
NANOSECONDS_FROM = 5e17
NANOSECONDS_TO = 9e18
"""What fits 64 bits: the year 2255."""
DATES = (19_000_101, 21_001_231)
"""Whole numbers between them may be dates."""
DATE_TIMES = (19_000_101_000_000, 21_001_231_235_959)
EARLIEST_MS = -62_135_596_800_000  # year 1
LATEST_MS = 253_402_300_799_999  # year 9999
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BLANKS = " \t\r\n\xa0"
_INFINITY = "[iI][nN][fF]([iI][nN][iI][tT][yY])?"
NUMBER = rf"^[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[nN][aA][nN]|{_INFINITY})$"
"""The text of a number; so are those of none, which are refused as such."""
_NUMBER = re.compile(NUMBER)
_ZONE = re.compile(r"\s+(UTC|GMT|Z|[+-]\d\d:?\d\d)$")
_NO_TIME = "must be ISO 8601 such as 2026-01-31T12:00:00Z, or epoch seconds or milliseconds"


def parse_time(value: object) -> int:
    """Epoch milliseconds of a time, written as the module says.

    Raises:
        ValueError: it is none; the message says what it must be.
    """
    ms = _milliseconds(value)
    if not EARLIEST_MS <= ms <= LATEST_MS:
        raise ValueError("must lie between the years 1 and 9999")
    return ms


def _milliseconds(value: object) -> int:
    if isinstance(value, str):
        text = value.strip(BLANKS)
        if not _NUMBER.match(text):
            return _parse_iso(text)
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(_NO_TIME)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    size = abs(value)
    if size < MILLISECONDS_FROM:
        day = _date(value) if DATES[0] <= value <= DATES[1] else None
        return round(value * 1000) if day is None else day
    if size < MICROSECONDS_FROM:
        day = _date(value) if DATE_TIMES[0] <= value <= DATE_TIMES[1] else None
        return round(value) if day is None else day
    if size >= NANOSECONDS_TO:
        return LATEST_MS + 1
    per_ms = 1_000 if size < NANOSECONDS_FROM else 1_000_000
    return (int(float(value)) + per_ms // 2) // per_ms


def _date(number: float) -> int | None:
    """Epoch milliseconds of YYYYMMDD or YYYYMMDDHHMMSS; None: it is no such date."""
    if number % 1:
        return None
    text = str(int(number))
    try:
        moment = datetime.strptime(text, "%Y%m%d" if len(text) == 8 else "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return (moment.replace(tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


def _parse_iso(text: str) -> int:
    try:
        moment = datetime.fromisoformat(_ZONE.sub(_joined_zone, text))
    except ValueError:
        raise ValueError(_NO_TIME) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # In whole numbers: a float of seconds is too coarse for milliseconds of a far year.
    return ((moment - EPOCH) // timedelta(microseconds=1) + 500) // 1000


def _joined_zone(zone: re.Match[str]) -> str:
    return "Z" if zone[1].isalpha() else zone[1]


def iso(ms: int) -> str:
    """ISO 8601 with milliseconds, in UTC."""
    seconds, rest = divmod(ms, 1000)
    return f"{_iso_seconds(seconds)}.{rest:03}Z"


@lru_cache(64)  # what is written at once is mostly of the same second
def _iso_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()

"""From when to when a log's times reach, and whether they can be what they were read as."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from model import UNKNOWN_TIME
from model.times import iso

PLAUSIBLE_FROM_MS = 631_152_000_000  # 1990
_DAY_NUMBERS = (32_874_000, 73_051_000)
"""What a spreadsheet's days of 1990 to 2099 are if they are read as seconds, in ms."""
_MINUTES = (190_001_010_000, 210_012_312_359)
"""YYYYMMDDHHMM, read as milliseconds."""
_SENTINELS = (0, -1000)
"""0 and -1, read as seconds."""


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """first_ms, last_ms: of the known times; None: there are none. unknown: rows without one.
    early: rows before 1990; the last three say of how many of them what they look like."""

    rows: int
    unknown: int
    first_ms: int | None
    last_ms: int | None
    early: int
    sentinels: int
    day_numbers: int
    minutes: int

    @classmethod
    def of(cls, time_ms: pl.Series) -> TimeSpan:
        known = time_ms.filter(time_ms != UNKNOWN_TIME)
        early = known.filter(known < PLAUSIBLE_FROM_MS)
        first, last = known.min(), known.max()
        return cls(
            rows=len(time_ms),
            unknown=len(time_ms) - len(known),
            first_ms=None if first is None else int(first),  # type: ignore[arg-type]
            last_ms=None if last is None else int(last),  # type: ignore[arg-type]
            early=len(early),
            sentinels=int(early.is_in(_SENTINELS).sum()),
            day_numbers=int(early.is_between(*_DAY_NUMBERS).sum()),
            minutes=int(early.is_between(*_MINUTES).sum()),
        )

    def __add__(self, other: TimeSpan) -> TimeSpan:
        firsts = [one.first_ms for one in (self, other) if one.first_ms is not None]
        lasts = [one.last_ms for one in (self, other) if one.last_ms is not None]
        return TimeSpan(
            self.rows + other.rows,
            self.unknown + other.unknown,
            min(firsts, default=None),
            max(lasts, default=None),
            self.early + other.early,
            self.sentinels + other.sentinels,
            self.day_numbers + other.day_numbers,
            self.minutes + other.minutes,
        )

    def __str__(self) -> str:
        if self.first_ms is None or self.last_ms is None:
            return "no time is known"
        text = f"times from {iso(self.first_ms)} to {iso(self.last_ms)}"
        return f"{text}, {self.unknown:,} not known" if self.unknown else text

    @property
    def early_fault(self) -> str | None:
        """Why these times can't be meant; None: none is too early."""
        if not self.early:
            return None
        if self.sentinels == self.early:
            cause = "0 and -1 say that no time is known: leave those fields empty"
        elif self.day_numbers == self.early:
            cause = "they look like a spreadsheet's day numbers: write them as dates"
        elif self.minutes == self.early:
            cause = "they look like YYYYMMDDHHMM: give --time-format '%Y%m%d%H%M'"
        else:
            cause = "mend them, or name their form with --time-format"
        return (
            f"{self.early:,} of {self.rows:,} times lie before 1990 ({self}): {cause}; if they are "
            "meant, give --any-time"
        )

    @property
    def late_fault(self) -> str | None:
        """The same of times that are still to come, by more than a day."""
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        if self.last_ms is None or self.last_ms <= tomorrow.timestamp() * 1000:
            return None
        return (
            f"there are times to come ({self}): mend them, or name their form with --time-format; "
            "if they are meant, give --any-time"
        )

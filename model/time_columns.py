"""Columns of times, read as `model.times` says."""

from __future__ import annotations

import polars as pl

from model.gaps import UNKNOWN_TIME
from model.times import BLANKS, EARLIEST_MS, LATEST_MS, MILLISECONDS_FROM, NUMBER, parse_time

_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}


def parse_times(column: pl.Series) -> pl.Series:
    """Epoch milliseconds (Int64) of text, numbers, dates or datetimes.

    UNKNOWN_TIME where nothing is given, null where it is no time.
    """
    kind = column.dtype
    if kind == pl.Date:
        column, kind = column.cast(pl.Datetime("ms")), pl.Datetime("ms")
    if isinstance(kind, pl.Datetime):
        per_ms = _PER_MS[kind.time_unit]
        ms = _in_range((column.dt.epoch(kind.time_unit) + per_ms // 2) // per_ms)
        empty = column.is_null()
    elif kind.is_numeric() or kind == pl.Null:
        ms, empty = _of_numbers(column.cast(pl.Float64)), column.is_null()
    else:
        text = column.cast(pl.String).str.strip_chars(BLANKS)
        empty = text.is_null() | (text == "")
        numeric = text.str.contains(NUMBER).fill_null(False)
        numbers = _of_numbers(text.set(~numeric, None).cast(pl.Float64))
        ms = numbers.zip_with(numeric, _of_iso(text.set(numeric | empty, None)))
    return ms.set(empty, UNKNOWN_TIME)


def time_fault(name: str) -> pl.Expr:
    """Why `parse_times` finds no time in a value of the column `name`: a text that names both."""
    value = pl.col(name).cast(pl.String)
    text = value.str.strip_chars(BLANKS)
    number = pl.when(text.str.contains(NUMBER)).then(text).cast(pl.Float64, strict=False)
    neither = (
        f"{name} '{{}}' is neither ISO 8601 such as 2026-01-31T12:00:00Z nor epoch seconds or "
        "milliseconds"
    )
    outside = f"{name} {{}} is outside the years 1 to 9999 in seconds and milliseconds"
    return (
        pl.when(number.is_null())
        .then(pl.format(neither, value))
        .when(number.is_finite())
        .then(pl.format(outside, value))
        .otherwise(pl.format(f"{name} {{}} is not finite", value))
    )


def _of_numbers(numbers: pl.Series) -> pl.Series:
    # Doubles are exact here: every time in range is below 2**53 ms.
    seconds = numbers.abs() < MILLISECONDS_FROM
    ms = (numbers * 1000).zip_with(seconds, numbers).round(mode="half_to_even")
    return _in_range(ms.set(ms.is_nan() | ms.is_infinite(), None))


def _of_iso(text: pl.Series) -> pl.Series:
    times: dict[str, int] = {}
    for value in text.drop_nulls().unique().to_list():
        try:
            times[value] = parse_time(value)
        except ValueError:
            continue
    return text.replace_strict(times, default=None, return_dtype=pl.Int64)


def _in_range(ms: pl.Series) -> pl.Series:
    return ms.set(~ms.is_between(EARLIEST_MS, LATEST_MS), None).cast(pl.Int64)

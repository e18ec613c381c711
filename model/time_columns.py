"""Columns of times, read as `model.times` says."""

from __future__ import annotations

import polars as pl

from model.gaps import UNKNOWN_TIME
from model.times import (
    BLANKS,
    DATE_TIMES,
    DATES,
    EARLIEST_MS,
    LATEST_MS,
    MICROSECONDS_FROM,
    MILLISECONDS_FROM,
    NANOSECONDS_FROM,
    NANOSECONDS_TO,
    NUMBER,
    parse_time,
)

_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}


def parse_times(column: pl.Series, form: str | None = None) -> pl.Series:
    """Epoch milliseconds (Int64) of text, numbers, dates or datetimes.

    UNKNOWN_TIME where nothing is given, null where it is no time.

    Args:
        form: of text and numbers, as polars has it (that of strftime); None: as `model.times` says.

    Raises:
        ValueError: `form` is none.
    """
    kind = column.dtype
    if form is not None and not kind.is_temporal():
        return _of_form(column.cast(pl.String).str.strip_chars(BLANKS), form)
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


def time_fault(name: str, form: str | None = None) -> pl.Expr:
    """Why `parse_times` finds no time in a value of the column `name`: a text that names both."""
    value = pl.col(name).cast(pl.String)
    if form is not None:
        return pl.format(f"{name} '{{}}' is not written as --time-format {form}", value)
    text = value.str.strip_chars(BLANKS)
    number = pl.when(text.str.contains(NUMBER)).then(text).cast(pl.Float64, strict=False)
    neither = (
        f"{name} '{{}}' is neither ISO 8601 such as 2026-01-31T12:00:00Z nor epoch seconds or "
        "milliseconds: another form is named by --time-format"
    )
    outside = f"{name} {{}} is outside the years 1 to 9999 in seconds and milliseconds"
    return (
        pl.when(number.is_null())
        .then(pl.format(neither, value))
        .when(number.is_finite())
        .then(pl.format(outside, value))
        .otherwise(pl.format(f"{name} {{}} is not finite", value))
    )


def _of_form(text: pl.Series, form: str) -> pl.Series:
    empty = text.is_null() | (text == "")
    try:
        found = text.str.to_datetime(form, time_unit="ms", strict=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"--time-format {form}: {error}") from None
    return _in_range(found.dt.epoch("ms")).set(empty, UNKNOWN_TIME)


def _of_numbers(numbers: pl.Series) -> pl.Series:
    # Doubles are exact here: every time in range is below 2**53 ms.
    size = numbers.abs()
    ms = (numbers * 1000).zip_with(size < MILLISECONDS_FROM, numbers)
    ms = ms.round(mode="half_to_even")
    ms = _in_range(ms.set(ms.is_nan() | ms.is_infinite(), None))
    for since, until, per_ms in (
        (MICROSECONDS_FROM, NANOSECONDS_FROM, 1_000),
        (NANOSECONDS_FROM, NANOSECONDS_TO, 1_000_000),
    ):
        fine = ((size >= since) & (size < until)).fill_null(False)
        if fine.any():
            whole = numbers.set(~fine, None).cast(pl.Int64)
            ms = _in_range((whole + per_ms // 2) // per_ms).zip_with(fine, ms)
    for bounds, form in ((DATES, "%Y%m%d"), (DATE_TIMES, "%Y%m%d%H%M%S")):
        days = _dates(numbers, bounds, form)
        ms = ms if days is None else days.zip_with(days.is_not_null(), ms)
    return ms


def _dates(numbers: pl.Series, bounds: tuple[int, int], form: str) -> pl.Series | None:
    """Those that are such dates, in ms; None: none is."""
    may_be = (numbers.is_between(*bounds) & (numbers % 1 == 0)).fill_null(False)
    if not may_be.any():
        return None
    texts = numbers.set(~may_be, None).cast(pl.Int64).cast(pl.String)
    found = texts.str.strptime(pl.Datetime("ms"), form, strict=False)
    # A 60th second is a time to one reader and none to the other.
    return found.dt.epoch("ms").set(texts.str.ends_with("60") & (form != "%Y%m%d"), None)


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

"""Many stored events at once, as columns: what `events.unpacked` says of one, without an object
for each."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from service.store.errors import RecordDamaged
from service.store.events import KIND, MOVED, NO_TIME, PLACED

TIME = pl.Datetime("ms", "UTC")
_HEAD = 26  # uid, effective time, given time, length of event_id
_UID = 8
_WEIGHT = 8


def event_columns(values: Sequence[bytes]) -> pl.DataFrame:
    """Of each event: item_id, timestamp (the effective time), given_ms, kind, weight and event_id;
    the last four are null where nothing was given.

    Raises:
        RecordDamaged: one of them can't be read.
    """
    stored = pl.DataFrame({"value": values}, schema={"value": pl.Binary})
    try:
        frame = _columns(stored)
    except pl.exceptions.PolarsError as error:
        raise RecordDamaged(f"an event cannot be read: {str(error).splitlines()[0]}") from None
    if frame["item_id"].null_count() or frame["timestamp"].null_count():
        raise RecordDamaged("an event cannot be read: it is too short")
    return frame


def _columns(stored: pl.DataFrame) -> pl.DataFrame:
    value, head = pl.col("value"), pl.col("head")
    placed = stored.with_columns(
        head=_number(24, 2, pl.UInt16).cast(pl.Int64), size=value.bin.size().cast(pl.Int64)
    ).with_columns(
        id_end=_HEAD + head % PLACED,
        end=pl.col("size") - pl.when(head & MOVED != 0).then(_UID).otherwise(0),
        has_kind=head & KIND != 0,
    )
    id_end, kind_begin = pl.col("id_end"), pl.col("id_end") + 1
    placed = placed.with_columns(
        kind_end=pl.when("has_kind").then(kind_begin + _number(id_end, 1, pl.UInt8).cast(pl.Int64))
    )
    kind_end, given = pl.col("kind_end"), _number(16, 8, pl.Int64)
    return placed.select(
        item_id=_text(pl.coalesce(kind_end + _WEIGHT, id_end), pl.col("end")),
        timestamp=_number(8, 8, pl.Int64).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        given_ms=pl.when(given != NO_TIME).then(given),
        kind=pl.when("has_kind").then(_text(kind_begin, kind_end)),
        weight=pl.when("has_kind").then(_number(kind_end, 8, pl.Float64).fill_nan(None)),
        event_id=_text(pl.lit(_HEAD), id_end),
    )


def _number(begin: int | pl.Expr, size: int, kind: type[pl.DataType]) -> pl.Expr:
    return pl.col("value").bin.slice(begin, size).bin.reinterpret(dtype=kind, endianness="big")


def _text(begin: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Null where it is empty."""
    text = pl.col("value").bin.slice(begin, end - begin).cast(pl.String)
    return pl.when(text != "").then(text)

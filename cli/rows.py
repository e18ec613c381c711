"""The rows of an interaction log as they go into records: numbered, each with a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cli.console import say
from cli.steps import say_what_was_read
from model.gaps import UNKNOWN_TIME
from model.items import LONGEST_ID
from model.times import iso
from training.interactions import GIVEN_COLUMNS, KIND_COLUMNS, read_log
from training.table_format import PLAIN, TableFormat
from training.tables import REPORTED_ROWS, InputError


def read_rows(path: Path, *, skip_bad_rows: bool, form: TableFormat = PLAIN) -> pl.DataFrame:
    """The rows of a log: user_id, item_id, time_ms (Int64), kind and weight (null where not given),
    row (from 1, of its user).

    Sorted by user, then in the user's order. A row without a time gets the last known time of its
    user, one before the first known time gets that one, and a user without any gets 1970: the
    service would take its own clock, which is after everything that the log knows.

    What is left out or filled in is said. Raises InputError as `read_log` does, and for an id
    that the service would refuse.
    """
    log = read_log(path, skip_bad_rows=skip_bad_rows, kinds=True, form=form)
    say_what_was_read(path, log)
    prepared = prepare(log.frame)
    if len(prepared.too_long):
        leave_out_too_long(path, prepared.too_long, len(prepared.too_long), skip_bad_rows)
    if prepared.timeless_rows:
        say(describe_timeless(path, prepared.timeless_rows, prepared.timeless_users))
    return prepared.rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """`rows`: the columns that `read_rows` gives. `too_long`: those left out for an id that the
    service would refuse. The rest counts rows that had no time."""

    rows: pl.DataFrame
    too_long: pl.DataFrame
    timeless_rows: int
    timeless_users: int


def prepare(frame: pl.DataFrame) -> Prepared:
    """Rows numbered and given a time. `frame`: all rows of some users, in their order; those of
    GIVEN_COLUMNS that it has stay, given times where they bring about the row's time."""
    frame = _numbered(frame)
    too_long = frame.filter(
        (pl.col("user_id").str.len_bytes() > LONGEST_ID)
        | (pl.col("item_id").str.len_bytes() > LONGEST_ID)
    )
    if len(too_long):
        frame = _numbered(frame.join(too_long, on=["user_id", "row"], how="anti"))
    unknown = frame.filter(pl.col("time_ms") == UNKNOWN_TIME)
    if len(unknown):
        known = pl.when(pl.col("time_ms") != UNKNOWN_TIME).then("time_ms")
        carried = known.forward_fill().backward_fill().over("user_id").fill_null(0)
        frame = frame.with_columns(carried.alias("time_ms"))
    if "given_ms" in frame.columns:
        frame = frame.with_columns(_given_ms().alias("given_ms"))
    return Prepared(frame, too_long, len(unknown), unknown["user_id"].n_unique())


def _given_ms() -> pl.Expr:
    """The given time, where a record that is given it after the row before takes the row's own."""
    time, given = pl.col("time_ms"), pl.col("given_ms")
    raised = (given < time) & (time == time.shift(1).over("user_id"))
    return pl.when((given == time) | raised).then(given)


def leave_out_too_long(path: Path, first: pl.DataFrame, count: int, skip_bad_rows: bool) -> None:
    """Says which rows have an id that is too long. Raises InputError unless they may be left out;
    `first`: the first of them."""
    fault = f"{path}: {count} rows with an id of more than {LONGEST_ID} bytes"
    listed = describe_rows(first, count)
    if not skip_bad_rows:
        raise InputError(f"{fault}:\n{listed}\nMend them, or leave them out with --skip-bad-rows.")
    say(f"{fault}, left out:\n{listed}")


def describe_timeless(path: Path, rows: int, users: int) -> str:
    return (
        f"{path}: {rows:,} rows of {users:,} users have no time; each gets the last known one of "
        "its user"
    )


def describe_rows(rows: pl.DataFrame, count: int) -> str:
    """The first of these rows, a line each, and how many more there are of the `count`."""
    lines = [
        f"  user {user!r}, row {row} in the user's order: item {item!r}"
        + (f" at {iso(time)}" if time != UNKNOWN_TIME else "")
        for user, item, time, row in rows.head(REPORTED_ROWS)
        .select("user_id", "item_id", "time_ms", "row")
        .iter_rows()
    ]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    return "\n".join(lines)


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    row = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user_id").alias("row")
    given = [name for name in GIVEN_COLUMNS if name in frame.columns]
    return frame.select("user_id", "item_id", "time_ms", *KIND_COLUMNS, *given, row)

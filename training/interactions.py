"""Interaction logs: CSV, Parquet or a folder of such parts in, clean sorted columns out.

A log has the columns `user_id,item_id,timestamp`, in any order; `rating` is checked where there is
one, and so are `kind` and `weight` where they are asked for; other columns are ignored.
Ids are any strings. A timestamp is a time as `model.times` says, or empty: not known.

    log = read_log(Path("interactions.csv.gz"))
    log.frame   # user_id, item_id, time_ms: by user, then time, then place in the file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from model import UNKNOWN_TIME
from model.items import LONGEST_ID
from model.kinds import HEAVIEST, KIND, KindRules
from model.time_columns import parse_times, time_fault
from model.times import EARLIEST_MS, LATEST_MS, iso
from training.table_files import NULL_WORDS, is_export, read_pieces
from training.table_format import PLAIN, TableFormat
from training.tables import (
    REPORTED_ROWS,
    BadRow,
    InputError,
    Piece,
    id_fault,
    nothing_in,
    refuse,
    split_off,
)
from training.time_span import TimeSpan

KIND_COLUMNS = ("kind", "weight")
GIVEN_COLUMNS = ("given_ms", "event_id")
"""What a record has beside: the time that was given for the interaction, where another one took
effect, and the id that it was sent with."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log as read.

    frame: user_id (String), item_id (String), time_ms (Int64, UNKNOWN_TIME where not known); sorted
        by user id; within a user by time, equal times in file order. Where kinds are asked for,
        also kind (String) and weight (Float64), null where not given.
    bad_rows: the first of the rows left out, `bad_row_count` is how many there were.
    notes: what a reader of the results should know about the order.
    kinds: the rules by which the rows are steps; None: all rows were taken.
    """

    frame: pl.DataFrame
    bad_rows: list[BadRow] = field(default_factory=list)
    bad_row_count: int = 0
    notes: list[str] = field(default_factory=list)
    kinds: KindRules | None = None

    def until(self, last_ms: int) -> Log:
        """Without the rows that are later, and with a note of how many those are.

        Raises InputError where none is left.
        """
        times = self.frame["time_ms"]
        kept = self.frame.filter(times <= last_ms)
        if kept.is_empty():
            span = f"{iso(int(times.min()))} to {iso(int(times.max()))}"  # type: ignore[arg-type]
            raise InputError(f"nothing is left of a log from {span}")
        left_out = len(self.frame) - len(kept)
        note = f"{left_out:,} of {len(self.frame):,} rows are after {iso(last_ms)} and left out"
        return replace(self, frame=kept, notes=[*self.notes, note])


def read_log(
    path: Path,
    *,
    skip_bad_rows: bool = False,
    kinds: bool = False,
    form: TableFormat = PLAIN,
) -> Log:
    """The interactions of a CSV or Parquet file (told apart by content, not by name), or of a
    folder of such files.

    Rows of one user are sorted by time if all their times are known; else the file's order is
    taken, in which a known time must not go back.

    Raises InputError where it is no such table, has no usable row, or, unless
    `skip_bad_rows`, has a row that can't be read; and for times that can't be meant, unless
    `form` takes any or it is an export.
    """
    frames, bad, notes = [], list[BadRow](), dict[str, None]()
    for piece in log_pieces(path, kinds=kinds, form=form):
        frames.append(piece.frame)
        bad += piece.bad
        notes |= dict.fromkeys(piece.notes)
    frame, unordered_users, faults = in_order(pl.concat(frames))
    bad = sorted([*bad, *faults])
    if not skip_bad_rows:
        refuse(path, bad, len(bad))
    if frame.is_empty():
        raise nothing_in(path, "interactions", bad, len(bad))
    if unordered_users:
        notes[
            f"{unordered_users} users have interactions without a time: "
            "theirs are taken in the order of the file"
        ] = None
    if not (form.any_time or is_export(path)):
        span = TimeSpan.of(frame["time_ms"])
        fault = span.early_fault or span.late_fault
        if fault is not None:
            raise InputError(f"{path}: {fault}")
    columns = frame.select("user_id", "item_id", "time_ms", *(KIND_COLUMNS if kinds else ()))
    return Log(columns, bad[:REPORTED_ROWS], len(bad), list(notes))


def log_pieces(
    path: Path,
    *,
    kinds: bool = False,
    given: bool = False,
    heaviest: float = HEAVIEST,
    form: TableFormat = PLAIN,
) -> Iterator[Piece]:
    """A log in pieces of bounded size, in the order of the file: the rows that can be read
    (user_id, item_id, time_ms, `line`, from 1, with `kinds` kind and weight, and with `given` those
    of GIVEN_COLUMNS that the log has) and those that can't, a weight above `heaviest` being one of
    the reasons. At least one piece comes.

    What `read_log` says of a user's rows together is for `in_order` to find.

    Raises InputError where the file is no such table.
    """
    optional = ["rating", *(KIND_COLUMNS if kinds else ()), *(GIVEN_COLUMNS if given else ())]
    for piece in read_pieces(path, ["user_id", "item_id", "timestamp"], optional, form):
        raw = piece.frame
        frame = raw.with_columns(_times(path, raw["timestamp"], form).alias("time_ms"))
        for name in optional:
            if raw.schema.get(name, pl.String).is_nested():
                raise InputError(f"{path}: {name} is {raw.schema[name]}; store a plain value")
        reason = pl.coalesce(
            id_fault("user_id"),
            id_fault("item_id"),
            pl.when(pl.col("time_ms").is_null()).then(time_fault("timestamp", form.time_format)),
            _rating_fault(raw.schema.get("rating")),
            *((_kind_fault(raw.schema), _weight_fault(raw.schema, heaviest)) if kinds else ()),
            *(_GIVEN[name][1] for name in GIVEN_COLUMNS if name in raw.columns),
        )
        frame, bad = split_off(frame, reason, piece.bad)
        wanted = [_kind(raw.schema), _weight(raw.schema)] if kinds else []
        wanted += [_GIVEN[name][0] for name in GIVEN_COLUMNS if name in raw.columns]
        frame = frame.select("user_id", "item_id", "time_ms", "line", *wanted)
        yield Piece(frame, bad, piece.notes)


def _times(path: Path, column: pl.Series, form: TableFormat) -> pl.Series:
    try:
        return parse_times(column, form.time_format)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _rating_fault(kind: pl.DataType | None) -> pl.Expr:
    if kind is None:
        return pl.lit(None, pl.String)
    value = _given("rating", {"rating": kind})
    number = value.cast(pl.Float64, strict=False)
    return pl.when(value.is_not_null() & number.is_finite().fill_null(False).not_()).then(
        pl.format("rating '{}' is not a finite number", value)
    )


def _given(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """An optional column as text, null where nothing is given."""
    if name not in schema:
        return pl.lit(None, pl.String).alias(name)
    text = pl.col(name).cast(pl.String)
    return pl.when(text != "").then(text).alias(name)


def _kind(schema: pl.Schema) -> pl.Expr:
    value = _given("kind", schema)
    return pl.when(value.is_in(NULL_WORDS).not_()).then(value).alias("kind")


def _kind_fault(schema: pl.Schema) -> pl.Expr:
    value = _kind(schema)
    return pl.when(value.str.contains(f"^{KIND.pattern}$").not_()).then(
        pl.format("kind '{}' is not 1 to 32 of A-Z a-z 0-9 _ . -", value)
    )


def _weight(schema: pl.Schema) -> pl.Expr:
    return _given("weight", schema).cast(pl.Float64, strict=False)


def _weight_fault(schema: pl.Schema, heaviest: float) -> pl.Expr:
    value, number = _given("weight", schema), _weight(schema)
    fits = number.is_between(0, heaviest).fill_null(False)
    most = "1e9" if heaviest == HEAVIEST else f"{heaviest:g} (max_weight)"
    return pl.when(value.is_not_null() & fits.not_()).then(
        pl.format(f"weight '{{}}' is not a number from 0 to {most}", value)
    )


_GIVEN_MS = pl.col("given_ms").cast(pl.String).str.strip_chars()
_MS = _GIVEN_MS.cast(pl.Int64, strict=False)
_EVENT_ID = pl.col("event_id").cast(pl.String)
_GIVEN = {
    "given_ms": (
        _MS.alias("given_ms"),
        pl.when((_GIVEN_MS != "") & _MS.is_between(EARLIEST_MS, LATEST_MS).fill_null(False).not_())
        .then(pl.format("given_ms '{}' is no time in whole milliseconds", _GIVEN_MS)),
    ),
    "event_id": (
        pl.when(_EVENT_ID != "").then(_EVENT_ID).alias("event_id"),
        pl.when(_EVENT_ID.str.len_bytes() > LONGEST_ID)
        .then(pl.lit(f"event_id has more than {LONGEST_ID} bytes")),
    ),
}  # fmt: skip
"""Each of these columns, and why a value of it can't be read."""


def in_order(frame: pl.DataFrame) -> tuple[pl.DataFrame, int, list[BadRow]]:
    """Rows of `log_pieces`, of some users all: in the order that `read_log` gives them, with
    `line`; how many of the users are taken in the order of the file; the rows that can't be
    placed."""
    bad: list[BadRow] = []
    known = pl.col("time_ms") != UNKNOWN_TIME
    partial = (known.not_().any() & known.any()).over("user_id")
    newest = pl.when(known).then("time_ms").cum_max().over("user_id").forward_fill().over("user_id")
    if frame.select((pl.col("time_ms") == UNKNOWN_TIME).any()).item():
        goes_back = pl.when(partial & known & (pl.col("time_ms") < newest)).then(
            pl.lit(
                "timestamp is before that of an earlier row of the same user, whose rows are taken "
                "in the order of the file because some have no time"
            )
        )
        frame, bad = split_off(frame, goes_back, bad)
    in_file_order = (pl.col("time_ms") == UNKNOWN_TIME).any().over("user_id")
    key = pl.when(in_file_order).then(pl.lit(0, pl.Int64)).otherwise("time_ms")
    frame = frame.with_columns(key.alias("key"), in_file_order.alias("in_file_order"))
    unordered = frame.filter("in_file_order").get_column("user_id").n_unique()
    return frame.sort("user_id", "key", "line"), unordered, bad

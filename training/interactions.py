"""Interaction logs and item tables: CSV, CSV.gz or Parquet in, clean sorted columns out.

A log has the columns `user_id,item_id,timestamp`, in any order; `rating` is checked where there is
one, and so are `kind` and `weight` where they are asked for; other columns are ignored.
Ids are any strings. A timestamp is a time as `model.times` says, or empty: not known.

    log = read_log(Path("interactions.csv.gz"))
    log.frame   # user_id, item_id, time_ms: by user, then time, then place in the file
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import IO

import polars as pl

from model import UNKNOWN_TIME
from model.kinds import HEAVIEST, KIND
from model.plain_file import open_plain
from model.time_columns import parse_times, time_fault

REPORTED_ROWS = 20
KIND_COLUMNS = ("kind", "weight")
BLOCK_CHARACTERS = 1 << 24
LONGEST_LINE = 1 << 20
CHUNK_ROWS = 200_000
COMPRESSION_FAULTS = (EOFError, gzip.BadGzipFile, zlib.error)


class InputError(ValueError):
    """A file that can't be used; the message names the file, the place and the way out."""


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """One row that can't be read. `line` is 1-based; in Parquet it is the row, from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """A log as read.

    frame: user_id (String), item_id (String), time_ms (Int64, UNKNOWN_TIME where not known); sorted
        by user id; within a user by time, equal times in file order. Where kinds are asked for,
        also kind (String) and weight (Float64), null where not given.
    bad_rows: the first of the rows left out, `bad_row_count` is how many there were.
    notes: what a reader of the results should know about the order.
    """

    frame: pl.DataFrame
    bad_rows: list[BadRow] = field(default_factory=list)
    bad_row_count: int = 0
    notes: list[str] = field(default_factory=list)


def read_log(path: Path, *, skip_bad_rows: bool = False, kinds: bool = False) -> Log:
    """The interactions of a CSV, CSV.gz or Parquet file (told apart by content, not by name).

    Rows of one user are sorted by time if all their times are known; else the file's order is
    taken, in which a known time must not go back.

    Raises InputError where the file is no such table, has no usable row, or, unless
    `skip_bad_rows`, has a row that can't be read.
    """
    frames, bad = [], list[BadRow]()
    for piece, faults in log_pieces(path, kinds=kinds):
        frames.append(piece)
        bad += faults
    frame, unordered_users, faults = in_order(pl.concat(frames))
    bad = sorted([*bad, *faults])
    if not skip_bad_rows:
        refuse(path, bad, len(bad))
    if frame.is_empty():
        raise InputError(f"{path}: no interactions in it")
    notes = []
    if unordered_users:
        notes.append(
            f"{unordered_users} users have interactions without a time: "
            "theirs are taken in the order of the file"
        )
    columns = frame.select("user_id", "item_id", "time_ms", *(KIND_COLUMNS if kinds else ()))
    return Log(columns, bad[:REPORTED_ROWS], len(bad), notes)


def log_pieces(
    path: Path, *, kinds: bool = False, heaviest: float = HEAVIEST
) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
    """A log in pieces of bounded size, in the order of the file: the rows that can be read
    (user_id, item_id, time_ms, `line`, from 1, and with `kinds` kind and weight) and those that
    can't, a weight above `heaviest` being one of the reasons. At least one piece comes.

    What `read_log` says of a user's rows together is for `in_order` to find.

    Raises InputError where the file is no such table.
    """
    optional = ["rating", *KIND_COLUMNS] if kinds else ["rating"]
    for raw, bad in _pieces(path, ["user_id", "item_id", "timestamp"], optional):
        frame = raw.with_columns(parse_times(raw["timestamp"]).alias("time_ms"))
        for name in optional:
            if raw.schema.get(name, pl.String).is_nested():
                raise InputError(f"{path}: {name} is {raw.schema[name]}; store a plain value")
        reason = pl.coalesce(
            _id_fault("user_id"),
            _id_fault("item_id"),
            pl.when(pl.col("time_ms").is_null()).then(time_fault("timestamp")),
            _rating_fault(raw.schema.get("rating")),
            *((_kind_fault(raw.schema), _weight_fault(raw.schema, heaviest)) if kinds else ()),
        )
        frame, bad = _split_off(frame, reason, bad)
        wanted = (_given("kind", raw.schema), _weight(raw.schema)) if kinds else ()
        yield frame.select("user_id", "item_id", "time_ms", "line", *wanted), bad


def read_items(path: Path, *, skip_bad_rows: bool = False) -> pl.DataFrame:
    """An item table: item_id (String), title (String or null), categories (List[String]).

    Read from the columns `item_id`, `title` and `categories` or `genres` (`|`-separated); the last
    two may be missing. Raises InputError as `read_log` does; an id listed twice is a bad row.
    """
    frames, bad = [], list[BadRow]()
    for piece, faults in _pieces(path, ["item_id"], ["title", "categories", "genres"]):
        frames.append(piece)
        bad += faults
    raw = pl.concat(frames)
    raw = raw.with_columns(
        pl.col(name).cast(pl.String)
        for name in ("title", "categories", "genres")
        if name in raw.columns and raw.schema[name] != pl.List(pl.String)
    )
    listed_before = pl.when(pl.col("item_id").is_first_distinct().not_()).then(
        pl.format("item_id '{}' was listed before", "item_id")
    )
    frame, bad = _split_off(raw, pl.coalesce(_id_fault("item_id"), listed_before), bad)
    if not skip_bad_rows:
        refuse(path, bad, len(bad))
    title = pl.col("title") if "title" in frame.columns else pl.lit(None, pl.String)
    source = next((name for name in ("categories", "genres") if name in frame.columns), None)
    if source is None:
        categories = pl.lit([], pl.List(pl.String))
    elif frame.schema[source] == pl.List(pl.String):
        categories = pl.col(source).fill_null([])
    else:
        parts = (
            pl.col(source).fill_null("").str.split("|").list.eval(pl.element().str.strip_chars())
        )
        categories = parts.list.eval(pl.element().filter(pl.element() != ""))
    return frame.select(
        "item_id",
        pl.when(title.str.strip_chars() != "").then(title).alias("title"),
        categories.alias("categories"),
    )


def _pieces(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
    """The named columns, as they stand, and `line`; CSV fields are strings, never null."""
    try:
        with open_plain(path) as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if magic == b"PAR1":
        for frame in _parquet_pieces(path, required, optional):
            yield frame, []
        return
    open_file = gzip.open if magic[:2] == b"\x1f\x8b" else open
    with open_file(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as text:
        yield from _csv_pieces(path, text, required, optional)


def _pick(
    path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> list[str]:
    missing = [name for name in required if name not in names]
    if missing:
        found = ", ".join(map(repr, names[:20])) or "none"
        raise InputError(f"{path}: no column {', '.join(missing)}; the columns are {found}")
    picked = [*required, *(name for name in optional if name in names)]
    twice = [name for name in picked if list(names).count(name) > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]}")
    return picked


def _parquet_pieces(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[pl.DataFrame]:
    try:
        columns = _pick(path, list(pl.read_parquet_schema(path)), required, optional)
        table = pl.scan_parquet(path, glob=False).select(columns)
        schema = table.collect_schema()
        for name in ("user_id", "item_id"):
            if name in columns:
                kind = schema[name]
                if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
                    raise InputError(f"{path}: {name} is {kind}; store it as integers or strings")
        ids = [pl.col(name).cast(pl.String) for name in ("user_id", "item_id") if name in columns]
        first = 1
        batches = table.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True)
        for frame in chain([pl.DataFrame(schema=schema)], batches):
            line = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("line")
            first += len(frame)
            yield frame.with_columns(*ids, line)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from error


def _csv_pieces(
    path: Path, text: IO[str], required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
    # polars' own CSV reader fills short rows silently and does not tell lines.
    lines = _lines(path, text)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{path}: line 1: {error}") from error
    except COMPRESSION_FAULTS as error:
        raise InputError(f"{path}: the compressed file is damaged: {error}") from error
    columns = _pick(path, header, required, optional)
    table = _CsvTable({name: header.index(name) for name in columns}, len(header))
    yield table.taken()
    line = reader.line_num + 1
    try:
        while block := text.read(BLOCK_CHARACTERS):
            block += next(lines, "")
            if '"' in block or block.count("\r") != block.count("\r\n"):
                # A quoted field may hold anything, line breaks too: the rest is read row by row.
                for _ in table.add_rows(chain(io.StringIO(block, newline=""), lines), line):
                    yield table.taken()
                return
            table.add_plain(block, line)
            line += block.count("\n")
            yield table.taken()
    except COMPRESSION_FAULTS as error:
        raise InputError(
            f"{path}: the compressed file is damaged after line {line - 1}: {error}"
        ) from error


def _lines(path: Path, text: IO[str]) -> Iterator[str]:
    """Raises InputError at a line without end: a few bytes may be gigabytes unpacked."""
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise InputError(f"{path}: a line of more than {LONGEST_LINE:,} characters in it")
        yield line


class _CsvTable:
    """The wanted columns of a CSV file, as strings, while it is read."""

    def __init__(self, places: dict[str, int], width: int) -> None:
        self.places, self.width = places, width
        self.schema = dict.fromkeys(places, pl.String) | {"line": pl.Int64}
        self.chunks: list[pl.DataFrame] = []
        self.bad: list[BadRow] = []

    def taken(self) -> tuple[pl.DataFrame, list[BadRow]]:
        """What was added since this was last asked."""
        frame = pl.concat([pl.DataFrame(schema=self.schema), *self.chunks])
        bad, self.bad, self.chunks = self.bad, [], []
        return frame, bad

    def add_plain(self, block: str, first_line: int) -> None:
        """Whole lines without quotes."""
        text = pl.Series("text", block.split("\n")).str.strip_suffix("\r")
        numbers = pl.int_range(first_line, first_line + len(text), dtype=pl.Int64, eager=True)
        lines = pl.DataFrame({"text": text, "line": numbers}).filter(pl.col("text") != "")
        fields = pl.col("text").str.count_matches(",", literal=True) + 1
        odd = lines.filter(fields != self.width).select("line", fields)
        self.bad += [BadRow(line, self._width_fault(found)) for line, found in odd.iter_rows()]
        split = pl.col("text").str.split_exact(",", self.width - 1).struct
        self.chunks.append(
            lines.filter(fields == self.width).select(
                *(split[place].alias(name) for name, place in self.places.items()), "line"
            )
        )

    def add_rows(self, text: Iterable[str], first_line: int) -> Iterator[None]:
        """Any CSV, quotes and line breaks in fields included; stops after each chunk."""
        reader = csv.reader(text, strict=True)
        pick = itemgetter(*self.places.values(), self.width)  # the last is the line's number
        rows: list[tuple[object, ...]] = []
        while True:
            begin = reader.line_num
            try:
                row: list[object] = list(next(reader))
            except StopIteration:
                break
            except csv.Error as error:
                line, end = first_line + begin, first_line + reader.line_num - 1
                through = f" (read up to line {end})" if end > line else ""
                self.bad.append(BadRow(line, f"{error}{through}"))
                continue
            if len(row) == self.width:
                row.append(first_line + begin)
                rows.append(pick(row))
            elif row:  # an empty line is no row
                self.bad.append(BadRow(first_line + begin, self._width_fault(len(row))))
            if len(rows) == CHUNK_ROWS:
                self._flush(rows)
                yield
        self._flush(rows)
        yield

    def _flush(self, rows: list[tuple[object, ...]]) -> None:
        self.chunks.append(pl.DataFrame(rows, schema=self.schema, orient="row"))
        rows.clear()

    def _width_fault(self, found: int) -> str:
        return f"{found} fields instead of {self.width}"


def _id_fault(name: str) -> pl.Expr:
    value = pl.col(name)
    missing = value.is_null() | (value.str.strip_chars() == "")
    return (
        pl.when(missing)
        .then(pl.lit(f"{name} is missing"))
        .when(value.str.contains("\ufffd", literal=True))
        .then(pl.lit(f"{name} is not valid UTF-8"))
    )


def _rating_fault(kind: pl.DataType | None) -> pl.Expr:
    if kind is None:
        return pl.lit(None, pl.String)
    value = pl.col("rating").cast(pl.String)
    number = value.str.strip_chars().cast(pl.Float64, strict=False)
    given = value.is_not_null() & (value.str.strip_chars() != "")
    return pl.when(given & number.is_finite().fill_null(False).not_()).then(
        pl.format("rating '{}' is not a finite number", value)
    )


def _given(name: str, schema: pl.Schema) -> pl.Expr:
    """An optional column as stripped text, null where nothing is given."""
    if name not in schema:
        return pl.lit(None, pl.String).alias(name)
    text = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text).alias(name)


def _kind_fault(schema: pl.Schema) -> pl.Expr:
    value = _given("kind", schema)
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


def _split_off(
    frame: pl.DataFrame, reason: pl.Expr, bad: list[BadRow]
) -> tuple[pl.DataFrame, list[BadRow]]:
    """The rows without a reason against them; the others join the bad ones, by line."""
    judged = frame.with_columns(reason.alias("reason"))
    faulty = judged.filter(pl.col("reason").is_not_null())
    found = [BadRow(*row) for row in faulty.select("line", "reason").iter_rows()]
    kept = judged.filter(pl.col("reason").is_null()).drop("reason")
    return kept, sorted([*bad, *found])


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
        frame, bad = _split_off(frame, goes_back, bad)
    in_file_order = (pl.col("time_ms") == UNKNOWN_TIME).any().over("user_id")
    key = pl.when(in_file_order).then(pl.lit(0, pl.Int64)).otherwise("time_ms")
    frame = frame.with_columns(key.alias("key"), in_file_order.alias("in_file_order"))
    unordered = frame.filter("in_file_order").get_column("user_id").n_unique()
    return frame.sort("user_id", "key", "line"), unordered, bad


def refuse(path: Path, bad: Sequence[BadRow], count: int) -> None:
    """Raises InputError if there are bad rows; `bad` are the first of them."""
    if count:
        raise InputError(
            f"{path}: {count} rows can't be read:\n{describe_bad_rows(bad, count)}\n"
            "Mend them, or leave them out with --skip-bad-rows (skip_bad_rows=True)."
        )


def describe_bad_rows(bad: Sequence[BadRow], count: int) -> str:
    """The first bad rows, a line each, and how many more there are."""
    lines = [f"  line {row.line}: {row.reason}" for row in bad[:REPORTED_ROWS]]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    return "\n".join(lines)

"""Tables as files: CSV, CSV.gz or Parquet, told apart by content, read in pieces of bounded size;
or as a folder of such files, its parts.

What can't be read is a bad row, told by its line and the reason; `refuse` ends with them, unless
they are to be left out.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import IO

import polars as pl

from model.log_folder import MANIFEST, WORKING
from model.plain_file import open_plain

REPORTED_ROWS = 20
BLOCK_CHARACTERS = 1 << 24
LONGEST_LINE = 1 << 20
CHUNK_ROWS = 200_000
PART_NAMES = (".parquet", ".csv", ".csv.gz")
COMPRESSION_FAULTS = (EOFError, gzip.BadGzipFile, zlib.error)


class InputError(ValueError):
    """A file that can't be used; the message names the file, the place and the way out."""


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """One row that can't be read. `line` is 1-based; in Parquet it is the row, from 1. In a folder
    it goes on from part to part."""

    line: int
    reason: str


def read_pieces(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
    """The named columns, as they stand, and `line`; CSV fields are strings, never null.

    The parts of a folder come in the order of their names, or as its export has noted them.

    Raises:
        InputError: a file that is no such table; a folder without parts, with parts of different
            columns, or with an export that is not complete.
    """
    if not path.is_dir():
        yield from _file_pieces(path, required, optional)
        return
    columns: dict[str, pl.DataType] = {}
    before = 0
    for part in _parts(path):
        last = 0
        for frame, bad in _file_pieces(part, required, optional):
            columns = columns or dict(frame.schema)
            if frame.schema != columns:
                raise InputError(
                    f"{part}: {_described(frame.schema)}; the parts before it: "
                    f"{_described(columns)}. Give all parts the same columns of the same types"
                )
            last = max([last, *frame["line"].tail(1), *(row.line for row in bad)])
            named = [
                BadRow(before + row.line, f"{row.reason} ({part.name}, line {row.line})")
                for row in bad
            ]
            yield frame.with_columns(pl.col("line") + before), named
        before += last


def _described(columns: Mapping[str, pl.DataType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items() if name != "line")


def _parts(folder: Path) -> list[Path]:
    """The files of a table in a folder. What is hidden, or named with an underscore, is none."""
    try:
        if (folder / WORKING).is_dir():
            parts = json.loads((folder / MANIFEST).read_bytes())["parts"]
            return [folder / part["name"] for part in parts]
        parts = [one for one in sorted(folder.iterdir()) if one.name.endswith(PART_NAMES)]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: the export is not complete: run the same export-log again, with all its "
            "shards"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}: {error}") from error
    found = [one for one in parts if not one.name.startswith((".", "_"))]
    if not found:
        raise InputError(f"{folder}: no {', '.join(f'*{name}' for name in PART_NAMES)} in it")
    return found


def _file_pieces(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, list[BadRow]]]:
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
    yield _with_ids(*table.taken())
    line = reader.line_num + 1
    try:
        while block := text.read(BLOCK_CHARACTERS):
            block += next(lines, "")
            if '"' in block or block.count("\r") != block.count("\r\n"):
                # A quoted field may hold anything, line breaks too: the rest is read row by row.
                for _ in table.add_rows(chain(io.StringIO(block, newline=""), lines), line):
                    yield _with_ids(*table.taken())
                return
            table.add_plain(block, line)
            line += block.count("\n")
            yield _with_ids(*table.taken())
    except COMPRESSION_FAULTS as error:
        raise InputError(
            f"{path}: the compressed file is damaged after line {line - 1}: {error}"
        ) from error


def _with_ids(frame: pl.DataFrame, bad: list[BadRow]) -> tuple[pl.DataFrame, list[BadRow]]:
    """Without the rows whose ids are not what somebody has called anything: in Parquet an id may
    be blank, or have that character in it."""
    reasons = [pl.lit(None, pl.String)]
    for name in {"user_id", "item_id"}.intersection(frame.columns):
        id_ = pl.col(name)
        blank, replaced = id_.str.strip_chars() == "", id_.str.contains("\ufffd", literal=True)
        reasons.append(pl.when(blank).then(pl.lit(f"{name} is missing")))
        reasons.append(pl.when(replaced).then(pl.lit(f"{name} is not valid UTF-8")))
    return split_off(frame, pl.coalesce(reasons), bad)


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


def id_fault(name: str) -> pl.Expr:
    """Why a value of the column `name` is no id."""
    missing = pl.col(name).is_null() | (pl.col(name) == "")
    return pl.when(missing).then(pl.lit(f"{name} is missing"))


def split_off(
    frame: pl.DataFrame, reason: pl.Expr, bad: list[BadRow]
) -> tuple[pl.DataFrame, list[BadRow]]:
    """The rows without a reason against them; the others join the bad ones, by line."""
    judged = frame.with_columns(reason.alias("reason"))
    faulty = judged.filter(pl.col("reason").is_not_null())
    found = [BadRow(*row) for row in faulty.select("line", "reason").iter_rows()]
    kept = judged.filter(pl.col("reason").is_null()).drop("reason")
    return kept, sorted([*bad, *found])


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

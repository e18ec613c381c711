"""CSV as text, read in pieces of bounded size, whatever stands between its fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TextIO

import polars as pl

from training.tables import BadRow, InputError, Piece
from training.text_file import FAULTS

BLOCK_CHARACTERS = 1 << 24
CHUNK_ROWS = 200_000
LONGEST_LINE = 1 << 20
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}

_READER = partial(csv.reader, skipinitialspace=True, strict=True)
_SAID = re.compile(r'"?sep=(.)"?[\r\n]*')
"""The first line that some spreadsheets write, for themselves."""


def csv_pieces(
    path: Path, text: TextIO, pick: Callable[[list[str]], dict[str, int]]
) -> Iterator[Piece]:
    """The columns that `pick` chooses of the header, as strings, never null.

    Raises InputError where it is no CSV.
    """
    # polars' own CSV reader fills short rows silently and does not tell lines.
    lines = _lines(path, text)
    first = next(lines, "")
    said = _SAID.fullmatch(first)
    line = 2 if said else 1
    head = next(lines, "") if said else first
    separator = said[1] if said else _separator(head)
    reader = _READER(chain([head], lines), delimiter=separator)
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}: line {line}: {error}") from error
    table = _CsvTable(pick(header), len(header), separator)
    name = SEPARATORS.get(separator, repr(separator))
    yield table.taken() if separator == "," else table.taken((f"fields are separated by {name}",))
    line += reader.line_num
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
    except FAULTS as error:
        raise InputError(
            f"{path}: the compressed file is damaged after line {line - 1}: {error}"
        ) from error


def _separator(header: str) -> str:
    """What stands most often between the header's names."""
    plain = re.sub('"[^"]*"', "", header)
    return max(SEPARATORS, key=plain.count)


def _lines(path: Path, text: TextIO) -> Iterator[str]:
    """Raises InputError at a line without end: a few bytes may be gigabytes unpacked."""
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise InputError(f"{path}: a line of more than {LONGEST_LINE:,} characters in it")
        yield line


class _CsvTable:
    """The wanted columns of a CSV file, as strings, while it is read."""

    def __init__(self, places: dict[str, int], width: int, separator: str) -> None:
        self.places, self.width, self.separator = places, width, separator
        self.schema = dict.fromkeys(places, pl.String) | {"line": pl.Int64}
        self.chunks: list[pl.DataFrame] = []
        self.bad: list[BadRow] = []

    def taken(self, notes: tuple[str, ...] = ()) -> Piece:
        """What was added since this was last asked."""
        frame = pl.concat([pl.DataFrame(schema=self.schema), *self.chunks])
        bad, self.bad, self.chunks = self.bad, [], []
        return Piece(frame, bad, notes)

    def add_plain(self, block: str, first_line: int) -> None:
        """Whole lines without quotes."""
        text = pl.Series("text", block.split("\n")).str.strip_suffix("\r")
        numbers = pl.int_range(first_line, first_line + len(text), dtype=pl.Int64, eager=True)
        lines = pl.DataFrame({"text": text, "line": numbers}).filter(pl.col("text") != "")
        fields = pl.col("text").str.count_matches(self.separator, literal=True) + 1
        odd = lines.filter(fields != self.width).select("line", fields)
        self.bad += [BadRow(line, self._width_fault(found)) for line, found in odd.iter_rows()]
        split = pl.col("text").str.split_exact(self.separator, self.width - 1).struct
        self.chunks.append(
            lines.filter(fields == self.width).select(
                *(split[place].alias(name) for name, place in self.places.items()), "line"
            )
        )

    def add_rows(self, text: Iterable[str], first_line: int) -> Iterator[None]:
        """Any CSV, quotes and line breaks in fields included; stops after each chunk."""
        reader = _READER(text, delimiter=self.separator)
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

"""The first rows of a table: its columns, and how their values look."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from model.times import (
    BLANKS,
    DATE_TIMES,
    DATES,
    MICROSECONDS_FROM,
    MILLISECONDS_FROM,
    NANOSECONDS_FROM,
    NUMBER,
)
from training.table_files import read_pieces
from training.table_format import TableFormat

_UNITS = (
    (NANOSECONDS_FROM, "nanoseconds"),
    (MICROSECONDS_FROM, "microseconds"),
    (MILLISECONDS_FROM, "milliseconds"),
    (0, "seconds"),
)


@dataclass(frozen=True, slots=True)
class TableHead:
    """frame: rows from the table's beginning, with all columns as they are called there."""

    path: Path
    frame: pl.DataFrame

    @classmethod
    def of(cls, path: Path, encoding: str | None) -> TableHead:
        """Raises InputError: it is no table."""
        form = TableFormat(encoding=encoding)
        pieces = list(islice(read_pieces(path, (), None, form), 2))
        return cls(path, pl.concat(piece.frame for piece in pieces).drop("line"))

    @property
    def names(self) -> list[str]:
        return self.frame.columns

    def times_in_words(self, name: str, form: str | None) -> str:
        """How the times of a column are read, by the first one that is given."""
        column = self.frame[name]
        if column.dtype.is_temporal():
            return str(column.dtype)
        if form is not None:
            return form
        texts = column.cast(pl.String).str.strip_chars(BLANKS)
        given = texts.filter(texts.is_not_null() & (texts != "")).head(1)
        if given.is_empty():
            return "none is given"
        if not given.str.contains(NUMBER).item():
            return f"ISO 8601, such as {given.item()}"
        value = abs(float(given.item()))
        for bounds, written in ((DATES, "YYYYMMDD"), (DATE_TIMES, "YYYYMMDDHHMMSS")):
            if bounds[0] <= value <= bounds[1]:
                return f"{written}, such as {given.item()}"
        unit = next(name for since, name in _UNITS if value >= since)
        return f"epoch {unit}, such as {given.item()}"

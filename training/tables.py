"""What in a table can't be used: a whole file, or a row of it, told by its line and the reason.

`refuse` ends with the bad rows, unless they are to be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

REPORTED_ROWS = 20


class InputError(ValueError):
    """A file that can't be used; the message names the file, the place and the way out."""


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """One row that can't be read. `line` is 1-based; in Parquet it is the row, from 1. In a folder
    it goes on from part to part."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a table: `frame` has the wanted columns and `line`; `bad`, what can't be read;
    `notes`, what is to be said of the whole table, each once."""

    frame: pl.DataFrame
    bad: list[BadRow]
    notes: tuple[str, ...] = ()


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


def nothing_in(path: Path, what: str, bad: Sequence[BadRow], count: int) -> InputError:
    """Why a table has nothing of what is looked for; `bad`: the first of its bad rows."""
    if not count:
        return InputError(f"{path}: no {what} in it")
    return InputError(
        f"{path}: no {what} in it: none of its rows can be read:\n{describe_bad_rows(bad, count)}"
    )


def describe_bad_rows(bad: Sequence[BadRow], count: int) -> str:
    """The first bad rows, a line each, and how many more there are."""
    lines = [f"  line {row.line}: {row.reason}" for row in bad[:REPORTED_ROWS]]
    if count > len(lines):
        lines.append(f"  and {count - len(lines)} more")
    return "\n".join(lines)

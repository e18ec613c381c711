"""What type the text of an item's attributes is of: number, boolean or text, a column at a time.

A column is numeric only if every value is a plain number without leading zeros: a code stays text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl

from cli.console import CommandError
from training.table_files import NULL_WORDS

Type = Literal["number", "boolean", "text"]

BOOLEANS = {"true": True, "t": True, "yes": True, "false": False, "f": False, "no": False}
TOLD_BOOLEANS = BOOLEANS | {"1": True, "0": False, "y": True, "n": False}
"""What is a boolean where one is asked for."""

_NOTHING = [word for word in NULL_WORDS if word.lower() != "nan"]
"""NaN is what a calculation that went wrong has left: it is named where numbers are meant."""
_MOST_DIGITS = 15
"""A number of more is not exact as a double."""
_PLAIN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_CODE = r"^-?(0[0-9]+|[0-9]{16,})$"
"""Digits that are no count: with leading zeros, or too many."""
_LIKE_A_NUMBER = (
    r"(?i)^([^\w\s.,-]{0,3}[+-]?[0-9][0-9.,'\s]*(e[+-]?[0-9]+)?\W{0,3}|[+-]?(nan|inf))$"
)


@dataclass(frozen=True, slots=True)
class TypedColumn:
    """values: of the type, null where nothing is given or in a row with a fault.
    faults: the places of rows that can't be read, and why. said: the type, in words."""

    values: pl.Series
    faults: list[tuple[int, str]]
    said: str


def parse_types(text: str | None) -> dict[str, Type]:
    """Of `price=number,ean=text`. Raises CommandError."""
    found: dict[str, Type] = {}
    for pair in filter(None, map(str.strip, (text or "").split(","))):
        name, _, type_ = map(str.strip, pair.partition("="))
        known = next((one for one in get_args(Type) if one == type_), None)
        if known is None or not name:
            raise CommandError(
                f"--types: {pair!r} is no NAME=TYPE, such as price=number: types are "
                f"{', '.join(get_args(Type))}"
            )
        found[name] = known
    return found


def typed(column: pl.Series, told: Type | None) -> TypedColumn:
    """A column of text, '' where nothing is given.

    Args:
        told: its type; None: the one that all of its values have.
    """
    values = column.set((column == "") | column.is_in(_NOTHING), None)
    given = values.drop_nulls()
    if told == "text" or given.is_empty():
        return TypedColumn(values, [], "text")
    if told == "boolean" or (told is None and given.str.to_lowercase().is_in(list(BOOLEANS)).all()):
        return _booleans(values)
    plain = given.str.contains(_PLAIN) & (given.str.len_chars() <= _MOST_DIGITS)
    if told == "number" or plain.all():
        return _numbers(values)
    odd = given.filter(~plain)
    if given.str.contains(_CODE).any() or not plain.any():
        return TypedColumn(values, [], "text")
    if odd.str.contains(_LIKE_A_NUMBER).all():
        return _numbers(values)
    return TypedColumn(
        values, [], f"text ({len(odd):,} of {len(given):,} are no numbers, such as {odd[0]!r})"
    )


def _booleans(values: pl.Series) -> TypedColumn:
    found = values.str.to_lowercase().replace_strict(
        TOLD_BOOLEANS, default=None, return_dtype=pl.Boolean
    )
    return _with_faults(values, found, "boolean", "true or false")


def _numbers(values: pl.Series) -> TypedColumn:
    plain = values.set(~values.str.contains(_PLAIN).fill_null(False), None)
    whole = not plain.str.contains(".", literal=True).any()
    found = plain.cast(pl.Int64 if whole else pl.Float64, strict=False)
    return _with_faults(values, found, "number", "plain number such as 1299.00")


def _with_faults(values: pl.Series, found: pl.Series, type_: Type, what: str) -> TypedColumn:
    wrong = (values.is_not_null() & found.is_null()).arg_true()
    faults = [
        (place, f"{values.name} {values[place]!r} is no {what}: write it so, or give --types "
         f"{values.name}=text")
        for place in wrong
    ]  # fmt: skip
    return TypedColumn(found, faults, type_)


def typed_columns(frame: pl.DataFrame, told: Mapping[str, Type]) -> Iterator[TypedColumn]:
    """Of the columns of text; and of those that are told, as text."""
    for column in frame.iter_columns():
        if column.name in told and column.dtype != pl.String:
            yield typed(column.cast(pl.String).fill_null(""), told[column.name])
        elif column.dtype == pl.String:
            yield typed(column.fill_null(""), told.get(column.name))

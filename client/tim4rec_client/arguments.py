"""What calls are given, checked before anything is sent: a slip is told in a sentence."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any


def text(name: str, value: object) -> str:
    """Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {_type(value)}: give a str")
    return value


def texts(name: str, values: object) -> list[str]:
    """Several; one str is not taken for its characters.

    Raises:
        TypeError
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is of type {_type(values)}: give a list of str")
    return [text(f"{name}[{place}]", value) for place, value in enumerate(values)]


def whole(name: str, value: Any) -> int:
    """Raises TypeError."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is of type {_type(value)}: give an int") from None


def fields(name: str, value: object) -> Mapping[str, Any]:
    """Of an item's record. Raises TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is of type {_type(value)}: give a dict of the item's fields")
    return value


def time(name: str, value: object) -> float | str | None:
    """As the service reads it.

    Raises:
        TypeError: it is no time.
        ValueError: which time a datetime is depends on who reads it.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(
                f"{name} {value} has no time zone: give {name}.replace(tzinfo=UTC) if it is in "
                f"UTC, {name}.astimezone() if in the time of this machine"
            )
        return value.isoformat()
    if value is None or isinstance(value, int | float | str):
        return value
    raise TypeError(f"{name} is of type {_type(value)}: give a datetime, ISO 8601 or epoch seconds")


def _type(value: object) -> str:
    return type(value).__name__

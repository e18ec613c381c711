"""One field or attribute of all items, so that a comparison with all of them is one operation.

An item has any number of values of a field. A comparison holds of it when it holds of one of them;
numbers, strings and booleans are never equal to, nor less than, one another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.catalogue.item import Scalar
from service.catalogue.shelf import Flags

Comparison = Literal["==", "<", "<=", ">", ">="]

_COMPARED: dict[Comparison, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Column:
    """Values of rows 1 to any; `put` is O(the row's values)."""

    def __init__(self, rows: Iterable[tuple[int, tuple[Scalar, ...]]], size: int) -> None:
        self._numbers: NDArray[np.float64] = np.full(size + 1, np.nan)
        self._several: dict[int, tuple[float, ...]] = {}  # rows with more than one number
        self._rows: dict[str | bool, set[int]] = {}  # of each string and boolean
        self._values: dict[int, tuple[Scalar, ...]] = {}
        numbers: dict[int, Scalar] = {}
        for row, values in rows:
            if len(values) == 1 and isinstance(values[0], float):
                self._values[row], numbers[row] = values, values[0]
            else:
                self.put(row, values)
        self._numbers[list(numbers)] = list(numbers.values())

    def put(self, row: int, values: tuple[Scalar, ...]) -> None:
        """Gives a row these values in place of those it had."""
        if row >= len(self._numbers):
            wider = np.full(2 * row, np.nan)
            wider[: len(self._numbers)] = self._numbers
            self._numbers = wider
        for old in self._values.pop(row, ()):
            if not _is_number(old):
                self._rows[old].discard(row)  # type: ignore[index]
        self._several.pop(row, None)
        self._numbers[row] = np.nan
        if not values:
            return
        self._values[row] = values
        numbers = [value for value in values if _is_number(value)]
        if len(numbers) == 1:
            self._numbers[row] = numbers[0]
        elif numbers:
            self._several[row] = tuple(map(float, numbers))
        for value in values:
            if not _is_number(value):
                self._rows.setdefault(value, set()).add(row)  # type: ignore[arg-type]

    def compare(self, comparison: Comparison, value: Scalar, size: int) -> Flags:
        """(size + 1,) of which rows it holds."""
        compared = _COMPARED[comparison]
        if _is_number(value):
            found = np.zeros(size + 1, np.bool_)
            numbers = self._numbers[: size + 1]
            found[: len(numbers)] = compared(numbers, value)
            for row, several in self._several.items():
                found[row] = any(compared(number, value) for number in several)
            return found
        if comparison == "==":
            return _flags(self._rows.get(value, ()), size)  # type: ignore[arg-type]
        like = [own for own in self._rows if type(own) is type(value) and compared(own, value)]
        return _flags(set().union(*(self._rows[own] for own in like)), size)

    def having(self, value: str | bool) -> set[int]:
        """The rows that have this value."""
        return self._rows.get(value, set())

    def present(self, size: int) -> Flags:
        """(size + 1,) which rows have any value."""
        return _flags(self._values, size)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flags(rows: Iterable[int], size: int) -> Flags:
    found = np.zeros(size + 1, np.bool_)
    found[list(rows)] = True
    return found

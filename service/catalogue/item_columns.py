"""One field or attribute of all items, so that a comparison with all of them is one operation.

An item has any number of values of a field. A comparison holds of it when it holds of one of them;
numbers, strings and booleans are never equal to, nor less than, one another.

Each string or boolean has a number, its code. A comparison is made once with each string there is,
and the rows that have one of those of which it holds are found by their codes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.catalogue.item import Scalar
from service.catalogue.turns import Steps
from service.catalogue.view import Flags

Comparison = Literal["==", "<", "<=", ">", ">=", "in", "has"]
Value = Scalar | tuple[str | bool, ...] | None

_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LEAST, _FEW = 16, 256
_AT_ONCE = 2**16
"""Strings that are compared between two places to pause."""
_BOOLEANS = 2  # have the first codes
_CODE_BYTES = 150
"""What a string's code takes, about; the string itself is the item's."""


class Column:
    """Values of rows 1 to any; `put` is O(the row's values)."""

    def __init__(self, rows: Iterable[tuple[int, tuple[Scalar, ...]]] = ()) -> None:
        self._numbers = _Pairs(np.float64)
        self._texts = _Pairs(np.int32)
        self._codes: dict[str | bool, int] = {False: 0, True: 1}
        self._strings: NDArray[np.object_] = np.full(_LEAST, "", np.object_)  # by code
        for row, values in rows:
            self.put(row, values)

    def put(self, row: int, values: tuple[Scalar, ...]) -> None:
        """Gives a row these values in place of those it had."""
        self._numbers.put(row, [value for value in values if isinstance(value, float)])
        self._texts.put(row, [self._code(v) for v in values if not isinstance(v, float)])

    @property
    def worn(self) -> bool:
        """Whether more of it was than is, so that a new one is better."""
        gone = len(self._codes) - _BOOLEANS > 2 * self._texts.left + _FEW
        return gone or self._numbers.worn or self._texts.worn

    @property
    def nbytes(self) -> int:
        """About."""
        return self._numbers.nbytes + self._texts.nbytes + _CODE_BYTES * len(self._codes)

    @property
    def is_empty(self) -> bool:
        return not self._numbers.left and not self._texts.left

    @property
    def has_numbers(self) -> bool:
        return self._numbers.left > 0

    @property
    def has_strings(self) -> bool:
        return len(self._codes) > _BOOLEANS

    @property
    def strings(self) -> Iterator[str]:
        """That some row has, or had not long ago."""
        return (own for own in self._codes if isinstance(own, str))

    def has(self, string: str) -> bool:
        """Whether it is one of `strings`."""
        return string in self._codes

    def compare(self, comparison: Comparison, value: Value, size: int) -> Steps[Flags]:
        """(size + 1,) of which rows it holds; `value`: of `in` several, of `has` none."""
        if value is None:
            found = self._numbers.flags(slice(None), size)
            return np.logical_or(found, self._texts.flags(slice(None), size), out=found)
        if isinstance(value, float):
            holds = _COMPARED[comparison](self._numbers.values, value)
            return self._numbers.flags(holds, size)
        if comparison in ("==", "in"):
            wanted = value if isinstance(value, tuple) else (value,)
            holds = np.zeros(len(self._codes), np.bool_)
            holds[[code for own in wanted if (code := self._codes.get(own)) is not None]] = True
        else:
            parts = [np.zeros(_BOOLEANS, np.bool_)]
            for start in range(_BOOLEANS, len(self._codes), _AT_ONCE):
                some = self._strings[start : min(start + _AT_ONCE, len(self._codes))]
                parts.append(_COMPARED[comparison](some, value))
                yield
            holds = np.concatenate(parts)
        newer = len(self._codes) - len(holds)  # strings that came meanwhile, with their rows
        return self._texts.flags(np.pad(holds, (0, newer))[self._texts.values], size)

    def _code(self, value: str | bool) -> int:
        code = self._codes.get(value)
        if code is None:
            code = self._codes[value] = len(self._codes)
            self._strings = _reaching(self._strings, code)
            self._strings[code] = value
        return code


class _Pairs:
    """Rows and a value of each, those of one row side by side. What was taken back has row 0."""

    def __init__(self, kind: type[np.generic]) -> None:
        # The pair at 0 is no one's: place 0 says that there is none.
        self._rows: NDArray[np.int32] = np.zeros(_LEAST, np.int32)
        self._values: NDArray[Any] = np.zeros(_LEAST, kind)
        self._size, self._gone = 1, 0
        self._places: NDArray[np.int32] = np.zeros(_LEAST, np.int32)  # the first one's, by row

    @property
    def values(self) -> NDArray[Any]:
        return self._values[: self._size]

    @property
    def left(self) -> int:
        return self._size - 1 - self._gone

    @property
    def worn(self) -> bool:
        return self._gone > self.left + _FEW

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._values.nbytes + self._places.nbytes

    def put(self, row: int, values: Sequence[Any]) -> None:
        if row < len(self._places) and (first := int(self._places[row])):
            end = first
            while end < self._size and self._rows[end] == row:
                end += 1
            self._rows[first:end] = 0
            self._places[row] = 0
            self._gone += end - first
        if not values:
            return
        self._places = _reaching(self._places, row)
        first, end = self._size, self._size + len(values)
        self._rows, self._values = _reaching(self._rows, end), _reaching(self._values, end)
        self._rows[first:end], self._values[first:end] = row, values
        self._places[row], self._size = first, end

    def flags(self, holds: NDArray[np.bool_] | slice, size: int) -> Flags:
        """(size + 1,) the rows of the pairs of which it holds."""
        found = np.zeros(max(size + 1, len(self._places)), np.bool_)
        found[self._rows[: self._size][holds]] = True
        return found[: size + 1]


def _reaching(array: NDArray[Any], place: int) -> NDArray[Any]:
    """With this place, and room for as many again."""
    if place < len(array):
        return array
    wider = np.zeros(2 * place, array.dtype)
    wider[: len(array)] = array
    return wider

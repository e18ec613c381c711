"""One field or attribute of all items, so that a comparison with all of them is one operation.

An item has any number of values of a field. A comparison holds of it when it holds of one of them;
numbers, strings and booleans are never equal to, nor less than, one another.

Each string has a number, its code. Once put in order, the strings less than another are found by
bisection, and the rows that have one of them by their codes.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.catalogue.item import Scalar
from service.catalogue.sorting import sorted_parts
from service.catalogue.turns import Shared, Steps
from service.catalogue.view import Flags

Comparison = Literal["==", "<", "<=", ">", ">="]

_COMPARED: dict[Comparison, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LEAST, _AT_ONCE = 16, 4096
_FEW, _FEW_OF = 256, 64
"""So many strings, or one in so many of them, need not be in order: each is compared."""
_CODE_BYTES = 150
"""What a string's code takes, about; the string itself is the item's."""


class Column:
    """Values of rows 1 to any; `put` is O(the row's values)."""

    def __init__(self, rows: Iterable[tuple[int, tuple[Scalar, ...]]] = ()) -> None:
        self._numbers = _Pairs(np.float64)
        self._texts = _Pairs(np.int32)
        self._codes: dict[str | bool, int] = {}
        self._named: list[str | bool] = []  # by code
        self._order: list[str] = []
        self._ranks: NDArray[np.int32] = np.empty(0, np.int32)  # in that order, by code; -1: none
        self._sorting: Shared[tuple[list[str], NDArray[np.int32]]] | None = None
        for row, values in rows:
            self.put(row, values)

    def put(self, row: int, values: tuple[Scalar, ...]) -> None:
        """Gives a row these values in place of those it had."""
        self._numbers.put(row, [value for value in values if isinstance(value, float)])
        self._texts.put(row, [self._code(v) for v in values if not isinstance(v, float)])

    @property
    def worn(self) -> bool:
        """Whether more of it was than is, so that a new one is better."""
        return (
            self._numbers.worn or self._texts.worn or len(self._named) > 2 * self._texts.left + _FEW
        )

    @property
    def nbytes(self) -> int:
        """About."""
        own = self._numbers.nbytes + self._texts.nbytes + self._ranks.nbytes
        return own + _CODE_BYTES * len(self._named)

    def sort(self) -> Steps[None]:
        """Puts the strings in order, which comparisons other than `==` are faster with."""
        if len(self._named) - len(self._ranks) <= max(_FEW, len(self._named) // _FEW_OF):
            return
        sorting = self._sorting = self._sorting or Shared(self._sorted(len(self._named)))
        self._order, self._ranks = yield from sorting.result()
        self._sorting = None

    def compare(self, comparison: Comparison, value: Scalar, size: int) -> Flags:
        """(size + 1,) of which rows it holds."""
        if isinstance(value, float):
            holds = _COMPARED[comparison](self._numbers.values, value)
            return self._numbers.flags(holds, size)
        if comparison != "==":
            return self._having(self._compared(comparison, str(value)), size)
        code = self._codes.get(value)
        if code is None:
            return np.zeros(size + 1, np.bool_)
        return self._texts.flags(self._texts.values == code, size)

    def among(self, values: Iterable[str | bool], size: int) -> Flags:
        """(size + 1,) which rows have one of these values."""
        wanted = np.zeros(len(self._named), np.bool_)
        wanted[[code for value in values if (code := self._codes.get(value)) is not None]] = True
        return self._having(wanted, size)

    def present(self, size: int) -> Flags:
        """(size + 1,) which rows have any value."""
        found = self._numbers.flags(slice(None), size)
        return np.logical_or(found, self._texts.flags(slice(None), size), out=found)

    def _code(self, value: str | bool) -> int:
        code = self._codes.setdefault(value, len(self._named))
        if code == len(self._named):
            self._named.append(value)
        return code

    def _sorted(self, count: int) -> Steps[tuple[list[str], NDArray[np.int32]]]:
        """The strings among the first so many, in order, and their ranks by code."""
        strings: list[str] = []
        for start in range(0, count, _AT_ONCE):
            some = self._named[start : min(start + _AT_ONCE, count)]
            strings += [own for own in some if isinstance(own, str)]
            yield
        order: list[str] = []
        ranks = np.full(count, -1, np.int32)
        for part in (yield from sorted_parts(strings)):
            ranks[[self._codes[own] for own in part]] = range(len(order), len(order) + len(part))
            order += part
            yield
        return order, ranks

    def _compared(self, comparison: Comparison, value: str) -> NDArray[np.bool_]:
        """By code, which strings compare so with this one."""
        bisect = bisect_left if comparison in ("<", ">=") else bisect_right
        border, known = bisect(self._order, value), len(self._ranks)
        wanted = np.zeros(len(self._named), np.bool_)
        if comparison in ("<", "<="):
            wanted[:known] = (self._ranks >= 0) & (self._ranks < border)
        else:
            wanted[:known] = self._ranks >= border
            wanted[:known] &= self._ranks >= 0
        compared = _COMPARED[comparison]
        for code, own in enumerate(self._named[known:], known):
            wanted[code] = isinstance(own, str) and compared(own, value)
        return wanted

    def _having(self, wanted: NDArray[np.bool_], size: int) -> Flags:
        """The rows with one of the wanted codes."""
        if not len(wanted):
            return np.zeros(size + 1, np.bool_)
        return self._texts.flags(wanted[self._texts.values], size)


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

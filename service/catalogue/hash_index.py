"""Rows by the hashes of their items' ids. Rows are only ever added."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.catalogue.cursor import Hashes, hash_of
from service.catalogue.turns import Steps

_BLOCK, _AT_ONCE = 2**15, 1024


class HashIndex:
    """Row i + 1 is that of the i-th id."""

    def __init__(self) -> None:
        self._full: list[tuple[Hashes, NDArray[np.int64]]] = []  # in order, and their rows
        self._open: list[int] = []
        self._last: tuple[int, Hashes, NDArray[np.int64]] | None = None  # of so many open ones

    def __len__(self) -> int:
        return len(self._full) * _BLOCK + len(self._open)

    def extend(self, ids: Sequence[str]) -> Steps[None]:
        """Takes in the ids that are new, all others being what they were."""
        while (known := len(self)) < len(ids):
            room = min(_AT_ONCE, _BLOCK - len(self._open))
            self._open += map(hash_of, ids[known : known + room])
            if len(self._open) == _BLOCK:
                self._full.append(self._ordered(self._open, len(self) - _BLOCK))
                self._open = []
            yield

    def find(self, hashes: Hashes) -> NDArray[np.int64]:
        """The rows that have one of these hashes."""
        if self._last is None or self._last[0] != len(self._open):
            start = len(self._full) * _BLOCK
            self._last = len(self._open), *self._ordered(self._open, start)
        found = [np.empty(0, np.int64)]
        for ordered, rows in (*self._full, self._last[1:]):
            first, last = (
                np.searchsorted(ordered, hashes),
                np.searchsorted(ordered, hashes, "right"),
            )
            found += [rows[first[i] : last[i]] for i in np.flatnonzero(last > first)]
        return np.concatenate(found)

    def _ordered(self, hashes: Sequence[int], start: int) -> tuple[Hashes, NDArray[np.int64]]:
        own = np.array(hashes, np.uint32)
        order = np.argsort(own, kind="stable")
        return own[order], order + start + 1

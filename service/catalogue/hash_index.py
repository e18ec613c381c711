"""Rows by the hashes of their items' ids. Rows are only ever added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.catalogue.cursor import Hashes, hash_of


class HashIndex:
    """Row i + 1 is that of the i-th id."""

    def __init__(self, ids: Iterable[str]) -> None:
        hashes = np.fromiter(map(hash_of, ids), np.uint32)
        order = np.argsort(hashes).astype(np.int32)
        self._hashes, self._rows = hashes[order], order + 1
        self._newer: defaultdict[int, list[int]] = defaultdict(list)  # rows by hash

    def add(self, item_id: str, row: int) -> None:
        self._newer[hash_of(item_id)].append(row)

    def find(self, hashes: Hashes) -> NDArray[np.int32]:
        """The rows that have one of these hashes."""
        hashes = np.unique(hashes)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        found = [self._rows[first[i] : last[i]] for i in np.flatnonzero(last > first)]
        newer = [row for own in hashes.tolist() for row in self._newer.get(own, ())]
        return np.concatenate([*found, np.array(newer, np.int32)])

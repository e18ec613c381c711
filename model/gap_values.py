"""What a model's tables say of gaps, in numpy: `GapGrid` and `GapTable` at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.gaps import FIRST, N_SPECIAL, UNKNOWN, UNKNOWN_TIME, ZERO, GapGrid
from model.prepared import Floats, array

Ints = NDArray[np.int64]

ONE_BY_ONE_BELOW = 16
"""Gaps up to which numpy takes longer than Python does."""


class GapValues:
    """The rows of a table, of whatever width, at the gaps of a grid."""

    def __init__(self, grid: GapGrid, table: Tensor) -> None:
        self._low, self._high = grid.range_s
        self._first, self._last = grid.first_knot, grid.rows - N_SPECIAL - 2
        self._width = table.shape[1]
        # Each row, and what leads from it to the next.
        self._pairs = array(torch.cat([table, torch.cat([table[1:], table[-1:]]) - table], 1))

    def __call__(self, times: Ints, last_times: Ints, first: NDArray[np.bool_] | None) -> Floats:
        """(N, W) at the gaps from `last_times` to `times`, each (N) int64 milliseconds or
        UNKNOWN_TIME. `first` (N): where there is nothing before; None: nowhere."""
        if len(times) < ONE_BY_ONE_BELOW:
            firsts = [False] * len(times) if first is None else first.tolist()
            known = zip(times.tolist(), last_times.tolist(), firsts, strict=True)
            row, weight = zip(*[self._knot(*one) for one in known], strict=True)
            rows, weights = np.array(row), np.array(weight, self._pairs.dtype)
        else:
            rows, weights = self._knots(times, last_times, first)
        found = self._pairs[rows]
        out: Floats = found[:, self._width :] * weights[:, None]
        out += found[:, : self._width]
        return out

    def _knot(self, time: int, last_time: int, first: bool) -> tuple[int, float]:
        if first:
            return FIRST, 0.0
        if UNKNOWN_TIME in (time, last_time):
            return UNKNOWN, 0.0
        if time <= last_time:
            return ZERO, 0.0
        seconds = min(max((time - last_time) / 1000, self._low), self._high)
        place = math.log2(seconds) - self._first
        whole = min(max(math.floor(place), 0), self._last)
        return whole + N_SPECIAL, place - whole

    def _knots(
        self, times: Ints, last_times: Ints, first: NDArray[np.bool_] | None
    ) -> tuple[Ints, Floats]:
        usable = (times != UNKNOWN_TIME) & (last_times != UNKNOWN_TIME)
        gaps = np.where(usable, times - last_times, 0)
        seconds = np.minimum(np.maximum(gaps / 1000, self._low), self._high)
        place = np.log2(seconds) - self._first
        whole = np.minimum(np.maximum(np.floor(place), 0), self._last)
        special = np.where(usable, np.where(gaps <= 0, ZERO, -1), UNKNOWN)
        if first is not None:
            special = np.where(first, FIRST, special)
        known = special < 0
        rows = np.where(known, whole.astype(np.int64) + N_SPECIAL, special)
        return rows, np.where(known, place - whole, 0.0).astype(self._pairs.dtype)

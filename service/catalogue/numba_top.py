"""The best of a CPU's scores, compiled by Numba: one look at each score, and no copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.compiled import compiled, part

BLOCK = 64
"""Scores that are passed over at once where none of them is among the best."""


def top(
    scores: NDArray[np.float32],
    hidden: Sequence[NDArray[np.int32]],
    seen: Sequence[NDArray[np.int32]] | None,
    bias: float,
    ks: Sequence[int],
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Columns and scores of the best `ks[i]` of each row, fewer where so many are not left; equal
    ones by their columns.

    Args:
        scores: (B, columns), changed: column 0 and what is `hidden` are never among the best.
        hidden: for each row, columns; those of items that came since have no score here.
        seen: for each row, what `bias` is added to; None: nothing.
    """
    columns, values, counts = _top(
        scores, *_flat(hidden), *_flat(seen or ()), np.float32(bias), np.array(ks)
    )
    return [(columns[i, :n], values[i, :n]) for i, n in enumerate(counts.tolist())]


_NONE: NDArray[np.int32] = np.empty(0, np.int32)


def _flat(lists: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All of them, and where each ends."""
    ends = np.array([len(one) for one in lists], np.int64).cumsum()
    return (np.concatenate(lists, dtype=np.int32) if lists else _NONE), ends


@compiled
def _top(
    scores: Any, hidden: Any, hidden_ends: Any, seen: Any, seen_ends: Any, bias: Any, ks: Any
) -> Any:
    most = min(ks.max(), scores.shape[1])
    columns = np.empty((len(scores), most), np.int64)
    values = np.empty((len(scores), most), np.float32)
    counts = np.zeros(len(scores), np.int64)
    biased = np.zeros(scores.shape[1] if len(seen) else 0, np.bool_)
    for row in range(len(scores)):
        own = scores[row]
        if len(seen_ends):
            items = seen[seen_ends[row - 1] if row else 0 : seen_ends[row]]
            for item in items:
                if item < len(own) and not biased[item]:  # once, where it stands there twice
                    biased[item] = True
                    own[item] += bias
            for item in items:
                if item < len(own):
                    biased[item] = False
        for item in hidden[hidden_ends[row - 1] if row else 0 : hidden_ends[row]]:
            if item < len(own):
                own[item] = -np.inf
        own[0] = -np.inf
        counts[row] = _best(own, min(ks[row], most), columns[row], values[row])
    return columns, values, counts


@part
def _best(own: Any, k: Any, columns: Any, values: Any) -> Any:
    """Fills the first k, or fewer, and says how many."""
    found, lowest = 0, np.float32(-np.inf)
    for begin in range(0, len(own), BLOCK):
        block = own[begin : begin + BLOCK]
        if not _holds_more(block, lowest):
            continue
        for offset in range(len(block)):
            value = block[offset]
            if value <= lowest:
                continue
            place = min(found, k - 1)
            found = place + 1
            while place and values[place - 1] < value:
                values[place], columns[place] = values[place - 1], columns[place - 1]
                place -= 1
            values[place], columns[place] = value, begin + offset
            if found == k:
                lowest = values[k - 1]
    return found


@part
def _holds_more(block: Any, lowest: Any) -> Any:
    some = 0
    for value in block:
        some |= value > lowest
    return some

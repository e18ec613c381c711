"""Sequences side by side in long rows, for a device that wants few large steps without padding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model import UNKNOWN_TIME
from training.batches import Batch
from training.dataset import Int64s

WIDTH = 1024
"""Positions of a row, if no sequence is longer: some 20 rows of a batch fill a GPU's scan, whose
chunks of a row follow each other."""


def packed(batch: Batch, width: int = WIDTH) -> Batch:
    """The same sequences and targets in fewer rows, each sequence whole; what is over in a row is
    its last sequence's padding.

    Args:
        batch: without interactions before its windows.
    """
    lengths = batch.lengths.numpy()
    row, begin, n_rows = _places(lengths, max(width, int(lengths.max(initial=1))))
    inside = torch.arange(batch.items.shape[1]) < batch.lengths[:, None]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = (
        torch.from_numpy(np.repeat(row, lengths)),
        torch.from_numpy(np.repeat(begin, lengths) + within),
    )
    used = int((begin + lengths).max(initial=1))

    def moved(part: Tensor, padding: int) -> Tensor:
        out = torch.full((n_rows, used), padding, dtype=part.dtype)
        out[at] = part[inside]
        return out

    # The number of a position's sequence in its row: where a new one begins, one more.
    begins = torch.zeros(n_rows, used, dtype=torch.int32)
    begins[torch.from_numpy(row), torch.from_numpy(begin)] = 1
    return Batch(
        items=moved(batch.items, 0),
        times=moved(batch.times, UNKNOWN_TIME),
        request_times=moved(batch.request_times, UNKNOWN_TIME),
        targets=moved(batch.targets, 0),
        lengths=torch.from_numpy(np.bincount(row, lengths, n_rows).astype(np.int64)),
        sequences=begins.cumsum(1, dtype=torch.int32) - 1,
    )


def _places(lengths: Int64s, width: int) -> tuple[Int64s, Int64s, int]:
    """The row and first position of each sequence, and the number of rows: next fit."""
    rows, begins, row, end = np.zeros_like(lengths), np.zeros_like(lengths), 0, 0
    for i, length in enumerate(lengths.tolist()):
        if end + length > width:
            row, end = row + 1, 0
        rows[i], begins[i] = row, end
        end += length
    return rows, begins, row + 1

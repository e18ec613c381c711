"""A function of a few rows of integers as CUDA graphs, one for each power of two of columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 8192
"""Columns of the largest graph: what is between the kernels of one then stays in an H200's L2."""

Run = Callable[[Tensor], Tensor | None]


def size_for(columns: int) -> int:
    """The least power of two that is not less."""
    return 1 << (columns - 1).bit_length()


class Graphs:
    """Calls `run` with (rows, columns) int64 on a CUDA device by replaying it.

    Columns without use have -1 in the first row, and `run` must do nothing for these. What it
    returns has a row for each column; a replay of the same size overwrites it.
    """

    def __init__(self, run: Run, rows: int, device: torch.device) -> None:
        self._run, self._rows, self._device = run, rows, device
        self._sizes: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]] = {}

    def __call__(self, given: Tensor) -> Tensor | None:
        columns = given.shape[1]
        graph, place, result = self._graph(size_for(columns))
        place[:, :columns].copy_(given)
        place[0, columns:] = -1
        graph.replay()
        return None if result is None else result[:columns]

    def prepare(self, columns: int) -> None:
        """Makes the graphs of all sizes that so many columns need, and of smaller ones."""
        size = size_for(columns)
        while size:
            self._graph(size)
            size //= 2

    def _graph(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        found = self._sizes.get(size)
        if found is None:
            place = torch.full((self._rows, size), -1, device=self._device)
            self._run(place)  # compiles, and makes what a capture may not
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            # Only this thread's calls must be such as can be captured.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = self._run(place)
            found = self._sizes[size] = graph, place, result
        return found

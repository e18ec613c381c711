"""The arrays that compiled ranking works on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Requests(NamedTuple):
    """B requests.

    queries: (B, D), where has_query (B); listed, listed_scores: (B, N) rows that the model ranks
    highest, best first, 0 after the last; numbers, rows: of last items, newest first, those of
    request b at [recent_ends[b - 1], recent_ends[b]): as the evidence counts them, -1 for none,
    and as the model knows them, 0 for none; hidden: rows not to be returned, likewise by
    hidden_ends; ks: (B) how many are wanted.
    """

    queries: npt.NDArray[np.float32]
    has_query: npt.NDArray[np.bool_]
    listed: npt.NDArray[np.int64]
    listed_scores: npt.NDArray[np.float32]
    numbers: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    recent_ends: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int32]
    hidden_ends: npt.NDArray[np.int64]
    ks: npt.NDArray[np.int64]


class Items(NamedTuple):
    """rows_of: (I) the catalogue's row of an item of the evidence, 0 for none; numbers_of: (R + 1)
    the other way, -1 for none; vectors: (V + 1, D); open: (R + 1) rows that may be returned;
    n_inputs: rows up to it move the model's states."""

    rows_of: npt.NDArray[np.int32]
    numbers_of: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.float32]
    open: npt.NDArray[np.bool_]
    n_inputs: int


class Scratch(NamedTuple):
    """sums: (I, 4) zeros; around: (I, D) the direction of the mean of an item's neighbours, in
    STEPS, as of the change of its counts that around_changes (I) says; marks: (R + 1) zeros;
    features: (F, C); rows, numbers: (C + 1), of which the last place is never a candidate's; logs:
    (C)."""

    sums: npt.NDArray[np.float32]
    around: npt.NDArray[np.int8]
    around_changes: npt.NDArray[np.float64]
    marks: npt.NDArray[np.int8]
    features: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.int32]
    logs: npt.NDArray[np.float32]

"""What saved evidence must be for compiled code, which checks no index, to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model.live.counting import FIRST_MS, N_STATS, POPULAR, RECENT, TOTAL
from model.times import EARLIEST_MS, LATEST_MS

Array = npt.NDArray[Any]


def require_readable(
    parts: Mapping[str, Array], *, neighbours: int, users: int, items: int
) -> None:
    """Checks the arrays that `Evidence.to_bytes` saves, against each other and the rules.

    Raises:
        ValueError: one is of another shape or type, or has values that were never counted.
        KeyError: one is missing.
    """
    _require_layout(parts, neighbours)
    size, n_users = len(parts["id_ends"]), len(parts["users"])
    _require(size <= items and n_users <= users, "it has more items or users than the rules allow")
    *_, n_events, n_uncounted, newest_ms = parts["about"].tolist()
    _require(n_events >= n_uncounted >= 0, "its events are not so many")
    _require(EARLIEST_MS <= newest_ms <= LATEST_MS, "its newest event is at no time")
    lengths = np.diff(parts["id_ends"], prepend=0)
    _require(_all_in(lengths, 0, None), "its item ids overlap")
    _require(lengths.sum() == len(parts["ids"]), "its item ids have another length")
    for name, least in (("counts.neighbours", -1), ("popular", -1), ("recent.items", 0)):
        _require(_all_in(parts[name], least, size - 1), f"{name} has a number of no item")
    missing = parts["counts.neighbours"] < 0
    _require((missing[:, :-1] <= missing[:, 1:]).all(), "counts.neighbours has gaps")
    for name in ("counts.together", "counts.after", "counts.visit"):
        _require(_all_in(parts[name], 0, float(np.finfo(np.float32).max)), f"{name} is no count")
    stats = parts["counts.stats"]
    _require(np.isfinite(stats).all(), "counts.stats is not finite")
    _require((stats[:, TOTAL] > 0).all(), "an item has no event")
    for name, times in (
        ("counts.touched", parts["counts.touched"]),
        ("counts.stats", stats[:, FIRST_MS]),
        ("recent.times", parts["recent.times"]),
    ):
        _require(_all_in(times, EARLIEST_MS, LATEST_MS), f"{name} has no time")
    _require(_all_in(parts["recent.total"], 0, n_events), "recent.total is no number of events")


def _require_layout(parts: Mapping[str, Array], neighbours: int) -> None:
    ids, size, users = len(parts["ids"]), len(parts["id_ends"]), len(parts["users"])
    layout: dict[str, tuple[type, tuple[int, ...]]] = {
        "about": (np.int64, (7,)),
        "ids": (np.uint8, (ids,)),
        "id_ends": (np.int64, (size,)),
        "users": (np.int64, (users,)),
        "popular": (np.int32, (2, POPULAR)),
        "counts.neighbours": (np.int32, (size, neighbours)),
        "counts.together": (np.float32, (size, neighbours)),
        "counts.after": (np.float32, (size, neighbours)),
        "counts.visit": (np.float32, (size, neighbours)),
        "counts.touched": (np.int64, (size,)),
        "counts.stats": (np.float64, (size, N_STATS)),
        "recent.items": (np.int32, (users, RECENT)),
        "recent.times": (np.int64, (users, RECENT)),
        "recent.total": (np.int64, (users,)),
    }
    for name, (dtype, shape) in layout.items():
        found = parts[name]
        _require(
            found.dtype == dtype and found.shape == shape,
            f"{name} is {found.dtype} of shape {found.shape}, not {dtype.__name__} of {shape}",
        )


def _all_in(values: Array, least: float, most: float | None) -> bool:
    """Whether all lie in least..most; NaN does not."""
    return bool((values >= least).all() and (most is None or (values <= most).all()))


def _require(holds: object, fault: str) -> None:
    if not holds:
        raise ValueError(fault)

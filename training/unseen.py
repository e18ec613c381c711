"""How far up lists items come that have had no event: as far as costs next to nothing.

By what is likeliest such an item is in no list. But lists are how an item gets its first events.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.live.ranking import AGE, LEAST_DAYS, LEAST_POPULARITY, POPULAR

LOSS = 0.005
"""The share of what is found among the other items that may be lost."""
LISTED = 10
ROUNDING = 0.01
BONUSES = np.arange(0, 8.25, 0.25)


def without_event(features: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """(C) Which candidates have had no event, by their features (F, C), rounded or not."""
    found: npt.NDArray[np.bool_] = np.logical_and(
        (features[POPULAR:AGE] <= LEAST_POPULARITY + ROUNDING).all(0),
        features[AGE] <= np.log2(LEAST_DAYS) + ROUNDING,
    )
    return found


def largest_bonus(hits: npt.NDArray[np.float64]) -> float:
    """Of `BONUSES`; hits: how much is found with each."""
    enough = hits >= (1 - LOSS) * hits[0]
    return float(BONUSES[np.flatnonzero(np.logical_and.accumulate(enough))[-1]])


def found_with_bonuses(
    own: npt.NDArray[np.float32], ahead: npt.NDArray[np.int64], unseen: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """How many of T targets are among the first `LISTED` with each bonus.

    Args:
        own: (T) their scores; ahead: (T) how many of the other items are at least as good; unseen:
            (T, N) the best scores of items without an event.
    """
    found = [(ahead + (unseen + bonus >= own[:, None]).sum(1) < LISTED).sum() for bonus in BONUSES]
    return np.array(found, np.float64)

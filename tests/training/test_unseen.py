"""Items without an event come as far up lists as costs next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from model.live.ranking import AGE, FEATURES, LEAST_DAYS, LEAST_POPULARITY, POPULAR
from training.unseen import BONUSES, LOSS, found_with_bonuses, largest_bonus, without_event


def test_what_is_found_is_counted_with_each_bonus() -> None:
    own = np.array([1.0, 0.0, 5.0], np.float32)
    ahead = np.array([9, 0, 10])
    unseen = np.array([[0.6, -9], [-2.1, -9], [9, 9]], np.float32)
    found = found_with_bonuses(own, ahead, unseen)
    # The first is displaced from a bonus of 0.4 on, the second never, the third was not found.
    assert found.tolist() == [2.0 if bonus < 0.4 else 1.0 for bonus in BONUSES]


@pytest.mark.parametrize("share", [0.0, LOSS / 2, LOSS])
def test_the_largest_bonus_loses_no_more_than_it_may(share: float) -> None:
    hits = np.full(len(BONUSES), 1000.0)
    assert largest_bonus(hits) == BONUSES[-1]
    hits[5:] -= 1000 * share
    hits[9:] -= 1000 * LOSS + 1
    hits[20:] = 2000  # what comes after a loss does not count
    assert largest_bonus(hits) == BONUSES[8]


def test_who_has_had_no_event_is_known_by_the_features() -> None:
    features = np.zeros((len(FEATURES), 4), np.float32)
    features[POPULAR:AGE, :3] = LEAST_POPULARITY
    features[AGE, [0, 2, 3]] = np.log2(LEAST_DAYS)  # the last had its first event just now
    features[AGE, 1] = 9  # nobody has had it for long
    rounded = features.astype(np.float16).astype(np.float32)
    assert without_event(rounded).tolist() == [True, False, True, False]

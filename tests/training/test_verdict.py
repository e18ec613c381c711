"""The judgement by ranks: its rule, and how often it errs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.dataset import Int64s
from training.metrics import MISS
from training.verdict import (
    CANDIDATE,
    INCUMBENT,
    LEAST_EVENTS,
    LEAST_USERS,
    MARGIN,
    Judgement,
    Verdict,
    decide,
)

SAMPLES = 60
PASSED = (Verdict.BETTER, Verdict.NOT_WORSE)


def hits(rng: np.random.Generator, chance: np.ndarray) -> Int64s:
    """Ranks (T) from 1 to 10 with these chances (T), else misses."""
    ranks = rng.integers(1, 11, len(chance))
    return np.where(rng.random(len(chance)) < chance, ranks, MISS).astype(np.int64)


def paired(rng: np.random.Generator, events: int, loss: float) -> tuple[Int64s, Int64s, Int64s]:
    """Users of events, and the ranks of two models who agree on most of them.

    Users differ in how easy they are and in how many events they have. loss: the share of the
    candidate's hits that it lacks; below 0 the incumbent's.
    """
    users = np.repeat(np.arange(events), rng.geometric(0.35, events))[:events]
    chance = rng.beta(1, 5.5, events)[users]
    incumbent = hits(rng, chance)
    candidate = np.where(rng.random(events) < 0.7, incumbent, hits(rng, chance))
    poorer = candidate if loss > 0 else incumbent
    poorer[rng.random(events) < abs(loss)] = MISS
    return users, incumbent, candidate


def verdicts(events: int, loss: float, samples: int = SAMPLES) -> Counter[Verdict]:
    rng = np.random.default_rng(0)
    found: Counter[Verdict] = Counter()
    for _ in range(samples):
        users, incumbent, candidate = paired(rng, events, loss)
        found[decide(users, {INCUMBENT: incumbent, CANDIDATE: candidate}).verdict] += 1
    return found


# -- how often it errs -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("events", [1000, 4000])
def test_what_loses_the_margin_does_not_get_past(events: int) -> None:
    found = verdicts(events, MARGIN)
    assert sum(found[name] for name in PASSED) <= 0.05 * SAMPLES + 1


@pytest.mark.slow
@pytest.mark.parametrize("events", [1000, 4000])
def test_what_is_as_good_is_not_called_worse(events: int) -> None:
    found = verdicts(events, 0)
    assert found[Verdict.WORSE] <= 0.02 * SAMPLES
    assert found[Verdict.BETTER] <= 0.05 * SAMPLES + 1


@pytest.mark.slow
def test_with_many_events_what_is_as_good_gets_past() -> None:
    found = verdicts(15_000, 0, samples=20)
    assert sum(found[name] for name in PASSED) >= 16


@pytest.mark.slow
def test_large_differences_are_seen_in_a_few_thousand_events() -> None:
    assert verdicts(4000, -0.2, samples=20)[Verdict.BETTER] >= 16
    assert verdicts(4000, 0.2, samples=20)[Verdict.WORSE] >= 16


@given(seed=st.integers(0, 1000), events=st.integers(LEAST_EVENTS, 2000))
def test_a_model_is_never_worse_than_itself(seed: int, events: int) -> None:
    users, ranks, _ = paired(np.random.default_rng(seed), events, 0)
    found = decide(users, {INCUMBENT: ranks, CANDIDATE: ranks})
    enough = len(np.unique(users)) >= LEAST_USERS and (ranks <= 10).any()
    assert found.verdict is (Verdict.NOT_WORSE if enough else Verdict.UNDECIDED)


# -- the rule --------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), loss=st.floats(-0.5, 0.5), margin=st.floats(0, 0.5))
def test_the_verdict_follows_from_the_interval_and_the_margin(
    seed: int, loss: float, margin: float
) -> None:
    users, incumbent, candidate = paired(np.random.default_rng(seed), 600, loss)
    found = decide(users, {INCUMBENT: incumbent, CANDIDATE: candidate}, margin)
    difference, mean = found.differences["NDCG@10"], found.figures[INCUMBENT]["NDCG@10"]
    assert difference.low <= difference.mean <= difference.high
    assert (difference.negative >= 0.975) >= (difference.high < 0)
    assert difference.mean == pytest.approx(found.figures[CANDIDATE]["NDCG@10"] - mean)
    reaches = difference.low <= -margin * mean
    expected = {
        Verdict.BETTER: difference.low > 0,
        Verdict.NOT_WORSE: difference.low <= 0 and not reaches,
        Verdict.WORSE: difference.low <= 0 and reaches and difference.negative >= 0.995,
        Verdict.UNDECIDED: difference.low <= 0 and reaches and difference.negative < 0.995,
    }
    assert [name for name, holds in expected.items() if holds] == [found.verdict]


def judged(candidate: float, counted: float) -> Judgement:
    """By shares of hits at the first place."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(500), 2)
    ranks = {
        name: np.where(rng.random(1000) < share, 1, MISS)
        for name, share in ((INCUMBENT, 0.1), (CANDIDATE, candidate), ("item-knn", counted))
    }
    return decide(users, ranks)


def test_what_is_below_counting_is_so_even_if_it_is_better_than_the_incumbent() -> None:
    found = judged(0.3, 0.5)
    assert found.verdict is Verdict.BELOW_COUNTING
    assert found.differences["NDCG@10"].low > 0
    assert "item-knn" in str(found)
    assert judged(0.3, 0.3).verdict is Verdict.BETTER


@pytest.mark.parametrize(("events", "users"), [(LEAST_EVENTS - 1, 100), (5000, LEAST_USERS - 1)])
def test_too_few_decide_nothing(events: int, users: int) -> None:
    chosen = np.arange(events) % users
    ranks = {INCUMBENT: np.full(events, MISS), CANDIDATE: np.ones(events, np.int64)}
    found = decide(chosen, ranks)
    assert found.verdict is Verdict.UNDECIDED
    assert f"{events:,} events of {min(events, users)} users are too few" in str(found)

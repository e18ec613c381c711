"""The test that a trial decides by: simulated, looked at after every cohort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.feedback.cohort import Cohort, Observed
from service.models.sequential_test import ERROR, Comparison, compared
from tests.depth import examples

LEAST = 300


def cohorts(
    draw: np.random.Generator, shares: list[float], base: list[float], more: float
) -> list[Cohort]:
    """Each of 120 users; `base`: the part of the base's who take something; `more`: of the
    trial's."""
    found = []
    for share, part in zip(shares, base, strict=True):
        trial = draw.binomial(120, share)
        taken = draw.binomial([120 - trial, trial], [part, part + more])
        found.append(Cohort(Observed(120 - trial, taken[0]), Observed(trial, taken[1])))
    return found


def looks(found: list[Cohort]) -> list[Comparison]:
    return [
        one
        for one in (compared(found[:n], LEAST) for n in range(1, len(found) + 1))
        if min(one.base.shown, one.trial.shown) >= LEAST
    ]


@pytest.mark.parametrize(
    "shares",
    [[0.1] * 100, [0.5] * 100, np.linspace(0.02, 0.6, 100).tolist()],
    ids=["a tenth", "half", "growing"],
)
def test_no_difference_is_seldom_called_one(shares: list[float]) -> None:
    """Also where the share grows while users take less: the sums alone would show a difference."""
    draw, runs = np.random.default_rng(3), examples(100)
    base = np.linspace(0.25, 0.05, 100).tolist()
    called = 0
    for _ in range(runs):
        every = looks(cohorts(draw, shares, base, 0.0))
        called += any(one.low > 0 or one.high < 0 for one in every)
    assert called <= runs * ERROR + 3 * np.sqrt(runs * ERROR * (1 - ERROR))


@pytest.mark.parametrize("more", [0.05, -0.05])
def test_a_difference_is_found(more: float) -> None:
    draw, runs = np.random.default_rng(4), 50
    found = wrong = 0
    for _ in range(runs):
        every = looks(cohorts(draw, [0.3] * 100, [0.15] * 100, more))
        found += any(one.low > 0 if more > 0 else one.high < 0 for one in every)
        wrong += any(one.high < 0 if more > 0 else one.low > 0 for one in every)
        assert every[-1].difference == pytest.approx(more, abs=0.03)
    assert found >= 0.9 * runs
    assert wrong <= 3


observed = st.integers(0, 1000).flatmap(
    lambda shown: st.integers(0, shown).map(lambda taken: Observed(shown, taken))
)


@settings(max_examples=examples(50))
@given(st.lists(st.builds(Cohort, observed, observed), max_size=6), st.integers(1, 10_000))
def test_an_interval_holds_its_difference(found: list[Cohort], tightest_at: int) -> None:
    one = compared(found, tightest_at)
    swapped = compared([Cohort(each.trial, each.base) for each in found], tightest_at)
    assert -1 <= one.low < one.high <= 1
    assert one.base.shown == sum(each.base.shown for each in found)
    if one.difference is None:
        assert swapped.difference is None
        assert (one.low, one.high) == (-1, 1)
    else:
        assert one.low <= one.difference <= one.high
        assert swapped.difference == pytest.approx(-one.difference)
        assert (swapped.low, swapped.high) == pytest.approx((-one.high, -one.low))

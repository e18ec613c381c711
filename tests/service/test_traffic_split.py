"""Who is answered by which of two models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models.traffic_split import TrafficSplit, Variant
from tests.depth import examples

A, B, C = (Variant(f"model {name}", name) for name in "abc")
USERS = [f"user{n}" for n in range(20_000)]


def split(trial: Variant, share: float) -> TrafficSplit:
    return TrafficSplit(base=A, trial=trial, share=share)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_trial_gets_its_share(share: float) -> None:
    part = sum(split(B, share).tries(user) for user in USERS) / len(USERS)
    assert part == pytest.approx(share, abs=0.01)  # three standard deviations


@settings(max_examples=examples(25))
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_moves_nobody_back(user: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert not split(B, small).tries(user) or split(B, large).tries(user)
    assert split(B, one).tries(user) is split(B, one).tries(user)
    assert not split(B, 0).tries(user)
    assert not TrafficSplit(base=A).tries(user)


def test_another_trial_mixes_users_anew() -> None:
    first = [user for user in USERS if split(B, 0.1).tries(user)]
    both = sum(split(C, 0.1).tries(user) for user in first)
    assert both / len(first) == pytest.approx(0.1, abs=0.03)

"""Who is answered by which of several models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models.traffic_split import (
    SEGMENTS,
    NoRoomError,
    TrafficSplit,
    Variant,
    drawn,
    segment,
)
from tests.depth import examples

BASE, *VARIANTS = (Variant(f"model {name}", name) for name in "abcd")
USERS = [f"user{n}" for n in range(20_000)]
SHARES = [0.001, 0.05, 0.1, 0.3, 0.5, 0.999]


def answered(split: TrafficSplit) -> list[str]:
    """The name of what answers each segment of users."""
    found = ["base"] * SEGMENTS
    for trial in split.trials:
        for one in trial.segments:
            assert found[one] == "base", "two trials have the same users"
            found[one] = trial.name
    return found


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_trial_gets_its_share(share: float) -> None:
    segments = TrafficSplit().tried(VARIANTS[0], share, False, 0).trials[0].segments
    part = sum(segment(user) in segments for user in USERS) / len(USERS)
    assert part == pytest.approx(share, abs=0.015)  # three standard deviations


changes = st.one_of(
    st.tuples(st.just("try"), st.sampled_from(VARIANTS), st.sampled_from(SHARES)),
    st.tuples(st.just("end"), st.sampled_from(VARIANTS), st.just(0.0)),
    st.tuples(st.just("promote"), st.sampled_from(VARIANTS), st.just(0.0)),
)


@settings(max_examples=examples(25))
@given(st.lists(changes, max_size=8))
def test_a_change_moves_only_whom_it_is_about(steps: list[tuple[str, Variant, float]]) -> None:
    """A larger share moves users of the base to the trial, a smaller one back, and an end its own
    users to the base; nobody else moves."""
    split = TrafficSplit(base=BASE)
    for what, variant, share in steps:
        before, own, old = answered(split), split.trial(variant.name), split
        if what == "try":
            others = [trial for trial in split.trials if trial is not own]
            if sum(len(trial.segments) for trial in others) + 1000 * share >= SEGMENTS:
                with pytest.raises(NoRoomError):
                    split.tried(variant, share, False, 0)
                continue
            split = split.tried(variant, share, False, 0)
            grows = own is None or share >= own.share
            allowed = ("base", variant.name) if grows else (variant.name, "base")
            assert answered(split).count(variant.name) == round(share * SEGMENTS)
        elif own is None:
            continue
        else:
            split = split.without(own) if what == "end" else split.promoted(variant, 0)
            allowed = variant.name, "base"
        assert split.version == old.version + 1
        assert split.token != old.token
        moved = {pair for pair in zip(before, answered(split), strict=True) if pair[0] != pair[1]}
        assert moved <= {allowed}
        tokens = {trial.name: trial.token for trial in old.trials if trial is not own}
        if what != "promote" or old.base == variant:  # else with another base: counted anew
            assert all(split.trial(name).token == tokens[name] for name in tokens)  # type: ignore[union-attr]
        else:
            assert not {trial.token for trial in split.trials} & set(tokens.values())


def test_another_trial_mixes_users_anew() -> None:
    first, other = (set(drawn(variant, 100)) for variant in VARIANTS[:2])
    assert len(first) == len(other) == 100
    assert len(first & other) == pytest.approx(10, abs=9)


def test_another_model_of_a_name_is_another_trial() -> None:
    split = TrafficSplit().tried(VARIANTS[0], 0.2, True, 5)
    again = split.tried(Variant(VARIANTS[0].name, "another"), 0.2, True, 7)
    assert [trial.variant.identity for trial in again.trials] == ["another"]
    assert again.trials[0].token != split.trials[0].token
    assert again.trials[0].since_ms == 7
    same = split.tried(VARIANTS[0], 0.3, True, 9).trials[0]
    assert (same.token, same.since_ms) == (split.trials[0].token, 5)
    assert split.tried(VARIANTS[0], 0.3, False, 9).trials[0].since_ms == 9

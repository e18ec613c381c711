from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.duration import in_words, parse_duration
from learning.schedule import LARGEST_FIRST, Schedule, Step, counted_from

EVERY = st.one_of(st.just(0.0), st.floats(1, 1e6))
DONE = st.dictionaries(st.sampled_from(LARGEST_FIRST), st.floats(0, 1e6))


@given(scoring=EVERY, warm=EVERY, scratch=EVERY, done=DONE, at=st.floats(0, 3e6))
def test_the_largest_step_that_is_due(
    scoring: float, warm: float, scratch: float, done: dict[Step, float], at: float
) -> None:
    every = {"scoring": scoring, "warm": warm, "scratch": scratch}
    found = Schedule(scoring, warm, scratch).due(done, at)
    expected = None
    for place, step in enumerate(LARGEST_FIRST):
        # A larger step makes a smaller one's work too.
        last = max((done[one] for one in LARGEST_FIRST[: place + 1] if one in done), default=None)
        if every[step] and (last is None or last + every[step] <= at):
            expected = step
            break
    assert found == expected


def test_steps_that_were_never_made_count_from_the_incumbents_data() -> None:
    schedule = Schedule(3600, 86_400, 0)
    assert schedule.due(counted_from({}, 0), 3599) is None
    assert schedule.due(counted_from({}, 0), 3600) == "scoring"
    assert schedule.due(counted_from({"scoring": 86_400}, 0), 86_400) == "warm"


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("1.5m", 90), (" 6h ", 21_600), ("2d", 172_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1 h", "1h30m", "1y", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (0.4, 60, 3600, 100_000)] == ["0s", "1m", "1h", "1.2d"]

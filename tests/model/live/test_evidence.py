"""Evidence is what plain counting says, however it is cut, saved and read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.live import counting
from model.live.arrays import packed, unpacked
from model.live.evidence import (
    LIGHTEST,
    Evidence,
    EvidenceError,
    EvidenceRules,
    Observed,
    user_key,
)
from model.times import EARLIEST_MS, LATEST_MS
from tests.model.live.event_sequences import (
    DAY_MS,
    HALF_LIFE_MS,
    POPULARITY_HALF_LIVES_MS,
    START_MS,
    PlainEvidence,
    event_sequences,
    random_events,
)

SMALL = EvidenceRules(neighbours=2, users=2, items=5)
rules = st.builds(
    EvidenceRules,
    neighbours=st.sampled_from([1, 2, 3, 8]),
    users=st.sampled_from([1, 2, 3, 8]),
    items=st.sampled_from([1, 4, 8]),
)


def equal(evidence: Evidence, plain: PlainEvidence) -> None:
    assert evidence.item_ids == list(plain.items)
    assert evidence.n_uncounted == plain.n_uncounted
    for number, (item_id, item) in enumerate(plain.items.items()):
        assert evidence.number(item_id) == number
        stats = evidence.counts.stats[number]
        assert stats[counting.TOTAL] == pytest.approx(item.total)
        assert stats[counting.FIRST_MS] == item.first_ms
        for h, half_life in enumerate(POPULARITY_HALF_LIVES_MS):
            expected = item.popularity(half_life)
            assert stats[counting.POPULARITY + h] == pytest.approx(expected, abs=1e-6)
        used, now = evidence.use(item_id, START_MS + DAY_MS), START_MS + DAY_MS
        assert used is not None
        assert (used.total, used.first_ms) == (pytest.approx(item.total), item.first_ms)
        assert used.a_day == pytest.approx(
            [
                np.log(2) * DAY_MS / half_life
                * sum(weight * 2 ** ((time - now) / half_life) for time, weight in item.events)
                for half_life in POPULARITY_HALF_LIVES_MS
            ],
            rel=1e-4,
        )  # fmt: skip
        assert evidence.counts.touched[number] == item.touched_ms
        found = [
            evidence.item_ids[other] for other in evidence.counts.neighbours[number] if other >= 0
        ]
        assert found == [neighbour.item for neighbour in item.neighbours]
        for name in ("together", "after", "visit"):
            values = getattr(evidence.counts, name)[number]
            expected = [getattr(neighbour, name) for neighbour in item.neighbours]
            np.testing.assert_allclose(values[: len(found)], expected, rtol=1e-5, atol=1e-30)
            assert not values[len(found) :].any()


@given(event_sequences(), rules, st.data())
def test_counts_are_those_of_plain_counting(
    events: list[Observed], rules: EvidenceRules, data: st.DataObject
) -> None:
    forgotten = data.draw(st.dictionaries(st.integers(0, len(events)), st.integers(0, 3)))
    evidence, plain = Evidence(rules), PlainEvidence(rules)
    for place, event in enumerate(events):
        if place in forgotten:
            evidence.forget([forgotten[place]])
            plain.forget(forgotten[place])
        evidence.observe([event])
        plain.observe(event)
    equal(evidence, plain)
    assert evidence.n_events == len(events)


def test_counts_of_many_events_are_those_of_plain_counting() -> None:
    rules = EvidenceRules(neighbours=16, users=50)
    events = random_events(np.random.default_rng(0), 3000, users=80, items=300)
    evidence, plain = Evidence(rules), PlainEvidence(rules)
    evidence.observe(events)
    for event in events:
        plain.observe(event)
    equal(evidence, plain)
    for row, half_life in zip(
        evidence.popular, (POPULARITY_HALF_LIVES_MS[n] for n in (0, -1)), strict=True
    ):
        assert len(set(row.tolist())) == counting.POPULAR
        most = sorted((item.popularity(half_life) for item in plain.items.values()), reverse=True)
        found = [plain.items[evidence.item_ids[item]].popularity(half_life) for item in row]
        np.testing.assert_allclose(found, most[: counting.POPULAR], atol=1e-6)


@given(event_sequences(), st.lists(st.integers(1, 9)), rules)
def test_batches_make_no_difference(
    events: list[Observed], sizes: list[int], rules: EvidenceRules
) -> None:
    one_by_one, cut, whole = Evidence(rules), Evidence(rules), Evidence(rules)
    for event in events:
        one_by_one.observe([event])
    begin = 0
    for size in sizes:
        cut.observe(events[begin : begin + size])
        begin += size
    cut.observe(events[begin:])
    whole.observe(events)
    assert one_by_one.to_bytes() == cut.to_bytes() == whole.to_bytes()


@given(event_sequences(), st.data(), rules)
def test_what_was_saved_goes_on_as_it_would_have(
    events: list[Observed], data: st.DataObject, rules: EvidenceRules
) -> None:
    at = data.draw(st.integers(0, len(events)))
    gone = data.draw(st.sets(st.integers(0, 3)))
    evidence = Evidence(rules)
    evidence.observe(events[:at])
    evidence.forget(gone)
    again = Evidence.from_bytes(evidence.to_bytes(), rules)
    assert again.to_bytes() == evidence.to_bytes()
    for one in (evidence, again):
        one.observe(events[at:])
    assert again.to_bytes() == evidence.to_bytes()
    assert (again.n_events, again.n_uncounted) == (evidence.n_events, evidence.n_uncounted)
    assert again.item_ids == evidence.item_ids


def test_together_is_the_sum_of_the_decayed_weights() -> None:
    times = [START_MS + days * DAY_MS for days in (0, 40, 7, 300, 299)]  # they go back, too
    evidence = Evidence()
    for user, time in enumerate(times):
        evidence.observe([Observed(user, "a", time), Observed(user, "b", time, 2.0)])
    newest = max(times)
    expected = sum(2.0 * 2.0 ** ((time - newest) / HALF_LIFE_MS) for time in times)
    for item, following in ((evidence.number("a"), expected), (evidence.number("b"), 0.0)):
        assert evidence.counts.together[item, 0] == pytest.approx(expected, rel=1e-5)
        assert evidence.counts.after[item, 0] == pytest.approx(following, rel=1e-5)
        assert evidence.counts.touched[item] == newest


def test_a_late_event_is_no_part_of_a_visit_long_after_it() -> None:
    evidence = Evidence()
    evidence.observe([Observed(0, "a", START_MS), Observed(0, "b", START_MS - DAY_MS)])
    assert evidence.counts.together[0, 0] > 0
    assert evidence.counts.visit[0, 0] == 0


@given(event_sequences(users=3))
def test_a_forgotten_user_leaves_no_last_items(events: list[Observed]) -> None:
    evidence = Evidence()
    evidence.observe(events)
    before = evidence.counts.together.copy()
    evidence.forget([0, 17])
    parts = unpacked(evidence.to_bytes())
    assert 0 not in parts["users"]
    assert len(parts["recent.items"]) == len({event.user_key for event in events} - {0})
    evidence.observe([Observed(0, "of nobody else", START_MS)])
    assert not evidence.counts.together[evidence.number("of nobody else")].any()
    np.testing.assert_array_equal(evidence.counts.together[: len(before)], before)


def test_forgotten_users_make_room_and_leave_nothing_behind() -> None:
    evidence, other = Evidence(SMALL), Evidence(SMALL)
    for one in (evidence, other):
        one.observe([Observed(1, "a", START_MS), Observed(2, "b", START_MS)])
    evidence.observe([Observed(1, "a", START_MS)] * 7)
    evidence.forget([1])
    evidence.observe([Observed(3, "c", START_MS)])
    other.observe([Observed(1, "a", START_MS)] * 7)
    other = Evidence.from_bytes(other.to_bytes(), SMALL)
    other.forget([1])
    other.observe([Observed(3, "c", START_MS)])
    assert evidence.to_bytes() == other.to_bytes()
    assert sorted(unpacked(evidence.to_bytes())["users"].tolist()) == [2, 3]


def test_invented_items_take_no_memory() -> None:
    evidence = Evidence(EvidenceRules(items=100))
    evidence.observe([Observed(n, f"{n}", START_MS + n) for n in range(1000)])
    evidence.observe([Observed(7, "99", START_MS), Observed(7, "100", LATEST_MS)])
    assert (evidence.n_events, evidence.n_uncounted) == (1002, 901)
    assert len(evidence.item_ids) == 100
    assert len(evidence.counts.stats) == 100
    assert evidence.newest_ms == START_MS + 99
    assert evidence.number("100") is None


@pytest.mark.parametrize(
    ("time_ms", "weight"),
    [
        (START_MS, 0.0),
        (START_MS, -1.0),
        (START_MS, LIGHTEST / 2),
        (START_MS, float("nan")),
        (START_MS, float("inf")),
        (START_MS, 1e10),
        (EARLIEST_MS - 1, 1.0),
        (LATEST_MS + 1, 1.0),
        (-(2**63), 1.0),
        (2**70, 1.0),
    ],
)
def test_what_would_spoil_the_counts_is_refused(time_ms: int, weight: float) -> None:
    evidence = Evidence()
    evidence.observe([Observed(1, "a", START_MS)])
    before = evidence.to_bytes()
    with pytest.raises(ValueError, match="cannot be counted"):
        evidence.observe([Observed(1, "b", START_MS), Observed(1, "c", time_ms, weight)])
    assert evidence.to_bytes() == before


def test_the_heaviest_and_the_lightest_of_all_times_are_counted() -> None:
    evidence = Evidence()
    for n, time in enumerate((EARLIEST_MS, LATEST_MS, 0)):
        for weight in (LIGHTEST, 1e9):
            evidence.observe([Observed(n, f"{weight}", time, weight)] * 20)
    for values in evidence.counts[1:4]:
        assert np.isfinite(values).all()
    assert np.isfinite(evidence.counts.stats[:2]).all()
    Evidence.from_bytes(evidence.to_bytes(), evidence.rules)


@pytest.mark.parametrize("name", ["neighbours", "users", "items"])
def test_evidence_of_other_rules_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        EvidenceRules(**{name: 0})
    with pytest.raises(EvidenceError, match="other rules"):
        Evidence.from_bytes(Evidence().to_bytes(), EvidenceRules(**{name: 63}))


def saved() -> memoryview:
    evidence = Evidence(SMALL)
    evidence.observe(random_events(np.random.default_rng(1), 40, users=2, items=4))
    return evidence.to_bytes()


def first(value: object) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def changed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = array.copy()
        array.reshape(-1)[0] = value
        return array

    return changed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, first(wrong)) for name in ("counts.neighbours", "popular") for wrong in (4, -2)),
        ("counts.neighbours", lambda array: np.where([True, False], -1, array)),
        *(("recent.items", first(wrong)) for wrong in (4, -1)),
        ("recent.total", first(-1)),
        ("recent.times", first(2**62)),
        ("counts.touched", first(-(2**62))),
        *(("counts." + name, first(wrong))
          for name in ("together", "after", "visit") for wrong in (np.nan, np.inf, -1)),
        *(("counts.stats", first(wrong)) for wrong in (np.nan, np.inf, 0)),
        ("counts.stats", lambda array: array[:, :4]),
        ("counts.together", lambda array: array.astype(np.float64)),
        ("counts.together", lambda array: array[:, :1]),
        ("counts.visit", lambda array: array[:2]),
        ("counts.neighbours", lambda array: array.astype(">i4")),
        ("id_ends", first(-1)),
        ("id_ends", lambda array: array[::-1]),
        ("id_ends", lambda array: array + 1),
        ("id_ends", lambda array: np.array(0)),
        ("ids", lambda array: array[:-1]),
        ("ids", lambda array: np.zeros_like(array)),
        ("ids", lambda array: np.full_like(array, 255)),
        ("users", lambda array: np.zeros_like(array)),
        ("users", lambda array: np.arange(3)),
        ("popular", lambda array: array[:1]),
        ("about", lambda array: array[:-1]),
        ("about", lambda array: array.astype(np.float64)),
        ("about", first(2)),
        ("about", lambda array: np.array([*array[:-1], 2**62])),
        ("about", lambda array: np.array([*array[:-3], -1, 0, array[-1]])),
    ],
)  # fmt: skip
def test_evidence_that_would_lead_compiled_code_astray_is_refused(
    name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    parts = unpacked(saved())
    Evidence.from_bytes(packed(parts), SMALL)
    with pytest.raises(EvidenceError):
        Evidence.from_bytes(packed(parts | {name: change(parts[name])}), SMALL)
    with pytest.raises(EvidenceError):
        Evidence.from_bytes(
            packed({other: parts[other] for other in parts if other != name}), SMALL
        )


@given(st.data())
def test_damaged_bytes_are_refused_or_harmless(data: st.DataObject) -> None:
    damaged = bytearray(saved())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 9, 3, 0])) :]
    try:
        evidence = Evidence.from_bytes(memoryview(damaged), SMALL)
    except EvidenceError:
        return
    evidence.observe(random_events(np.random.default_rng(2), 40, users=4, items=6))


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b"[" * 100_000, b'{"ids": 3}', b'{"ids": ["O", [3]]}', b"\xff", b"3"]
)
def test_bytes_of_something_else_are_refused(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header
    with pytest.raises(EvidenceError):
        Evidence.from_bytes(memoryview(data), SMALL)


def test_a_user_key_is_64_signed_bits_of_a_hash() -> None:
    assert user_key("u") == user_key("u") != user_key("v")
    assert all(-(2**63) <= user_key(f"{n}") < 2**63 for n in range(1000))
    assert len({user_key(f"{n}") for n in range(1000)}) == 1000

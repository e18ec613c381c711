"""Cores, vocabularies and splits against plain-Python ones."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import UNKNOWN_TIME
from tests.training.logs import DAY_MS, START_MS, chain_log, make_log
from training.dataset import Dataset, Protocol, Split, build_dataset, k_core
from training.interactions import Log
from training.tables import InputError

Pairs = list[tuple[int, int]]


def brute_core(pairs: Pairs, k_users: int, k_items: int) -> Pairs:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        kept = [(u, i) for u, i in pairs if users[u] >= k_users and items[i] >= k_items]
        if kept == pairs:
            return kept
        pairs = kept


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=80),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_core_against_brute_force(pairs: Pairs, k_users: int, k_items: int) -> None:
    users = np.array([u for u, _ in pairs], dtype=np.int64)
    items = np.array([i for _, i in pairs], dtype=np.int64)
    kept = k_core(users, items, k_users, k_items)
    assert [pair for pair, keep in zip(pairs, kept, strict=True) if keep] == brute_core(
        pairs, k_users, k_items
    )


def decoded(dataset: Dataset) -> dict[str, list[tuple[str, int]]]:
    h = dataset.histories
    return {
        user: [
            (dataset.item_ids[h.items[place] - 1], int(h.times[place]))
            for place in range(h.offsets[index], h.offsets[index + 1])
        ]
        for index, user in enumerate(dataset.user_ids)
    }


logs = st.lists(
    st.tuples(
        st.sampled_from("abcde"), st.sampled_from("vwxyz"), st.sampled_from([0, 1, 5, 5000, 10**6])
    ),
    min_size=1,
    max_size=60,
).map(make_log)


@given(logs)
def test_share_of_repeats_against_lists(log: Log) -> None:
    try:
        dataset = build_dataset(log, Protocol(1, 1))
    except InputError:
        return
    targets = {int(user): place for place, user in enumerate(dataset.validation.users)}
    again = []
    for index, user in enumerate(dataset.user_ids):
        if index in targets:
            before = [item for item, _ in decoded(dataset)[user]][: dataset.train_lengths[index]]
            target = dataset.item_ids[dataset.validation.items[targets[index]] - 1]
            again.append(target in before)
    assert dataset.repeats() == pytest.approx(sum(again) / max(1, len(again)))


@given(logs, st.integers(1, 3))
def test_leave_one_out_against_lists(log: Log, core: int) -> None:
    rows = list(log.frame.iter_rows())
    expected: dict[str, list[tuple[str, int]]] = {}
    remaining = Counter(brute_core([(row[0], row[1]) for row in rows], core, core))
    for user, item, ms in rows:
        if remaining[user, item]:
            expected.setdefault(user, []).append((item, ms))
    tested = {user: rows for user, rows in expected.items() if len(rows) >= 3}
    if not tested:
        with pytest.raises(InputError, match=r"--core|at least 3"):
            build_dataset(log, Protocol(core, core))
        return
    dataset = build_dataset(log, Protocol(core, core))
    assert decoded(dataset) == expected
    assert dataset.item_ids == sorted({item for rows in expected.values() for item, _ in rows})
    for targets, back in ((dataset.test, 1), (dataset.validation, 2)):
        assert [dataset.user_ids[user] for user in targets.users] == sorted(tested)
        for row, user in enumerate(targets.users):
            offset = dataset.histories.offsets[user]
            history = expected[dataset.user_ids[user]]
            assert targets.ends[row] - offset == len(history) - back
            assert dataset.item_ids[targets.items[row] - 1] == history[-back][0]
            assert targets.times[row] == history[-back][1]
    training = {user: rows[:-2] if user in tested else rows for user, rows in expected.items()}
    assert dataset.train_lengths.tolist() == [len(training[user]) for user in sorted(expected)]
    counted = Counter(item for rows in training.values() for item, _ in rows[1:])
    assert dict(zip(dataset.item_ids, dataset.popularity(), strict=True)) == {
        item: counted[item] for item in dataset.item_ids
    }
    assert dataset.n_train_targets == sum(counted.values())
    gaps = [b[1] - a[1] for rows in training.values() for a, b in pairwise(rows) if b[1] > a[1]]
    assert dataset.gap_range_ms() == ((min(gaps), max(gaps)) if gaps else None)


def test_gap_constants_see_the_training_part_only() -> None:
    day = [0, 1, 3, 100, 300]
    rows = [("u", f"i{n}", START_MS + d * DAY_MS) for n, d in enumerate(day)]
    dataset = build_dataset(make_log(rows), Protocol(1, 1))
    assert dataset.gap_range_ms() == (DAY_MS, 2 * DAY_MS)


def test_unknown_times_make_no_gap() -> None:
    times = [1000, UNKNOWN_TIME, 9000, 9500, UNKNOWN_TIME, 9999]
    log = make_log([("u", f"i{n}", ms) for n, ms in enumerate(times)])
    dataset = build_dataset(log, Protocol(1, 1))
    assert dataset.gap_range_ms() == (500, 500)
    assert dataset.describe()["unknown_times"] == 2


def test_ties_keep_the_order_of_the_log() -> None:
    log = make_log([("u", item, 5) for item in "cabed"])
    dataset = build_dataset(log, Protocol(1, 1))
    assert [item for item, _ in decoded(dataset)["u"]] == list("cabed")
    assert dataset.item_ids[dataset.test.items[0] - 1] == "d"


def test_a_temporal_split_against_its_definition() -> None:
    rng = np.random.default_rng(3)
    rows = [
        (f"u{rng.integers(30)}", f"i{int(rng.exponential(6))}", START_MS + 60_000 * minute)
        for minute in range(1000)
    ]
    log = make_log(rows)
    dataset = build_dataset(log, Protocol(3, 8, "temporal"))
    first, second = (START_MS + 60_000 * minute for minute in (800, 900))
    assert dataset.cut_ms == first
    training = [(user, item) for user, item, ms in rows if ms < first]
    core = set(brute_core(training, 3, 8))
    vocabulary = {item for _, item in core}
    users = {user for user, _ in core}
    assert set(dataset.item_ids) == vocabulary
    assert dataset.user_ids == sorted(users)
    unseen = 0
    for targets, begin, end in (
        (dataset.validation, first, second),
        (dataset.test, second, START_MS * 2),
    ):
        position = {int(user): row for row, user in enumerate(targets.users)}
        for index, user in enumerate(dataset.user_ids):
            after = [(ms, item) for u, item, ms in rows if u == user and begin <= ms < end]
            assert (index in position) == bool(after)
            if not after:
                continue
            row, (ms, item) = position[index], min(after)
            expected = dataset.item_ids.index(item) + 1 if item in vocabulary else 0
            unseen += expected == 0
            assert (targets.items[row], targets.times[row]) == (expected, ms)
            before = [i for u, i, t in rows if u == user and t < ms and i in vocabulary]
            offset = dataset.histories.offsets[index]
            given = dataset.histories.items[offset : targets.ends[row]]
            assert [dataset.item_ids[i - 1] for i in given] == before
    assert unseen > 0, "the data must contain a target that training has not seen"
    assert dataset.n_train_targets == len(brute_core(training, 3, 8)) - len(users)


def test_a_forward_split_against_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = [
        (f"u{rng.integers(30) + minute // 30}", f"i{int(rng.exponential(6))}", START_MS + minute)
        for minute in range(1000)
    ]
    log, cut = make_log(rows), START_MS + 900
    dataset = build_dataset(log, Protocol(3, 8, "forward"))
    assert dataset.cut_ms == cut
    training = brute_core([(user, item) for user, item, ms in rows if ms < cut], 3, 8)
    vocabulary = {item for _, item in training}
    assert set(dataset.item_ids) == vocabulary
    expected = {}
    for user, item, ms in rows:
        before = [i for u, i, t in rows if u == user and t < ms and i in vocabulary]
        if ms >= cut and before:
            expected[user, ms] = item if item in vocabulary else None, before
    found = {}
    targets, histories = dataset.validation, dataset.histories
    for user, end, item, ms in zip(
        targets.users, targets.ends, targets.items, targets.times, strict=True
    ):
        given = histories.items[histories.offsets[user] : end]
        name = dataset.item_ids[item - 1] if item else None
        found[dataset.user_ids[user], int(ms)] = name, [dataset.item_ids[i - 1] for i in given]
    newer = {user for user, _ in expected} - {user for user, _ in training}
    assert newer, "the data must contain a user who begins later"
    assert {key: found[key] for key in expected if key[0] in newer} == {
        key: value for key, value in expected.items() if key[0] in newer
    }
    assert {key: value[0] for key, value in found.items()} == {
        key: value[0] for key, value in expected.items()
    }
    assert len(targets) == len(expected)
    assert not len(dataset.test)
    monkeypatch.setattr("training.dataset.MOST_VALIDATED", 20)
    drawn = build_dataset(log, Protocol(3, 8, "forward")).validation
    assert len(drawn) == 20
    assert set(drawn.ends.tolist()) <= set(targets.ends.tolist())


@pytest.mark.parametrize("split", ["temporal", "forward"])
def test_a_split_in_time_needs_times(split: Split) -> None:
    log = make_log([("u", "i", 1), ("u", "j", UNKNOWN_TIME)])
    with pytest.raises(InputError, match="needs every time; 1 are not known"):
        build_dataset(log, Protocol(1, 1, split))


def test_a_protocol_comes_back_and_one_core_stands_for_both() -> None:
    protocol = Protocol(3, 2, "temporal", test_share=0.2)
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    assert Protocol.from_dict({"core": 7, "split": "temporal"}) == Protocol(7, 7, "temporal")
    assert Protocol(7, 7).core == "7-core"
    assert Protocol(7, 2).core == "core of 7 interactions a user and 2 an item"


def test_a_given_vocabulary_skips_unknown_inputs_and_misses_unknown_targets() -> None:
    log = make_log([("u", item, 1000 * n) for n, item in enumerate("abcd")])
    dataset = build_dataset(log, Protocol(1, 1), vocabulary=["c", "a"])
    assert decoded(dataset)["u"] == [("a", 0), ("c", 2000)]
    assert dataset.test.items.tolist() == [0]
    assert dataset.test.times.tolist() == [3000]
    assert dataset.test.ends.tolist() == [2]
    assert dataset.validation.items.tolist() == [1]  # "c" is the first word
    assert dataset.validation.ends.tolist() == [1]


@pytest.mark.parametrize("split", ["temporal", "forward"])
def test_times_that_are_all_the_same_are_the_cause(split: Split) -> None:
    frame = chain_log().frame.with_columns(time_ms=pl.lit(1_700_000_000_000, pl.Int64))
    said = "nothing lies before the cut of a .* times are from 2023-11-14T22:13:20.000Z to 2023-"
    for core in (1, 5):
        with pytest.raises(InputError, match=said):
            build_dataset(Log(frame), Protocol(core, core, split))


def test_too_large_a_core_says_so() -> None:
    with pytest.raises(InputError, match="no interactions are left in the 1000-core of"):
        build_dataset(chain_log(), Protocol(1000, 1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core_items": 0}, "core_items must be at least 1"),
        ({"split": "random"}, "split must be leave-one-out or temporal"),
        ({"validation_share": 0.6, "test_share": 0.4}, "together below 1"),
    ],
)
def test_a_protocol_that_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**options)  # type: ignore[arg-type]


def test_a_sample_is_fixed_and_in_order() -> None:
    targets = build_dataset(chain_log(), Protocol(1, 1)).test
    sample = targets.sample(10)
    assert np.array_equal(sample.users, targets.sample(10).users)
    assert (np.diff(sample.users) > 0).all()
    assert targets.sample(10_000) is targets


def test_published_sizes(ml_100k: Log) -> None:
    sizes = build_dataset(ml_100k).describe()
    assert (sizes["users"], sizes["items"], sizes["interactions"]) == (943, 1349, 99287)

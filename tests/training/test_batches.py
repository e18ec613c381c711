"""Windows and batches: every training target exactly once an epoch, with its own context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import UNKNOWN_TIME
from model.gaps import past_gaps
from tests.training.logs import DAY_MS, START_MS, chain_log, make_log
from training.batches import (
    Batch,
    asked_between,
    gather_padded,
    n_batches,
    prefix_batches,
    ties_shuffled,
    window_batches,
)
from training.dataset import Dataset, Protocol, Replay, build_dataset


def numbered(lengths: list[int]) -> Dataset:
    """Users with these training lengths; every item and time occurs once."""
    rows, number = [], 0
    for user, length in enumerate(lengths):
        for _ in range(length + 2):
            rows.append((f"u{user:02}", f"i{number:04}", 1000 * number))
            number += 1
    return build_dataset(make_log(rows), Protocol(1, 1))


def followed(batches: Iterator[Batch]) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        at = batch.targets > 0
        pairs.update(zip(batch.items[at].tolist(), batch.targets[at].tolist(), strict=True))
    return pairs


def training_pairs(dataset: Dataset) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for begin, end in zip(dataset.histories.offsets[:-1], dataset.train_ends, strict=True):
        items = dataset.histories.items[begin:end].tolist()
        pairs.update(pairwise(items))
    return pairs


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(lengths, st.integers(1, 15), st.integers(1, 60), st.integers(0, 3))
def test_every_target_once_an_epoch(
    lengths: list[int], max_len: int, targets: int, epoch: int
) -> None:
    dataset = numbered(lengths)
    options = {"max_len": max_len, "targets": targets, "epoch": epoch}
    assert followed(window_batches(dataset, **options)) == training_pairs(dataset)
    assert followed(prefix_batches(dataset, **options)) == training_pairs(dataset)


@given(
    lengths, st.integers(1, 15), st.integers(0, 400), st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 3),
)  # fmt: skip
def test_a_replay_has_every_new_target_and_no_more_than_its_share_of_the_others(
    lengths: list[int], max_len: int, newer: int, share: float, epoch: int
) -> None:
    dataset = numbered(lengths)
    since = 1000 * newer
    replayed = replace(dataset, replay=Replay(since, share))
    pairs = training_pairs(dataset)
    time = dict(zip(dataset.histories.items, dataset.histories.times, strict=True))
    new = Counter(pair for pair in pairs if time[pair[1]] > since)
    batches = list(window_batches(replayed, max_len=max_len, targets=30, epoch=epoch))
    found = followed(iter(batches))
    assert new <= found <= pairs
    prefixes = followed(prefix_batches(replayed, max_len=max_len, targets=30, epoch=epoch))
    assert new <= prefixes <= pairs
    if share == 1:
        assert found == prefixes == pairs
    elif share == 0:
        assert prefixes == new
        for batch in batches:
            targets = [row[row > 0].tolist() for row in batch.targets]
            assert all(time[row[-1]] > since for row in targets)


def test_the_batches_of_a_replay_are_about_as_many_as_are_counted() -> None:
    dataset = build_dataset(chain_log(users=300), Protocol(1, 1))
    since = int(np.quantile(dataset.histories.times, 0.9))
    for share in (0.0, 0.3, 1.0):
        replayed = replace(dataset, replay=Replay(since, share))
        for max_len in (6, 100):
            options = {"targets": 128, "max_len": max_len}
            made = len(list(window_batches(replayed, **options)))
            assert made == pytest.approx(n_batches(replayed, **options), rel=0.15, abs=1)
    drawn = [
        followed(window_batches(replace(dataset, replay=Replay(since, 0.3)), epoch=epoch))
        for epoch in (0, 1)
    ]
    assert drawn[0] != drawn[1], "what is replayed is drawn anew each epoch"


@given(lengths, st.integers(1, 15), st.integers(1, 60))
def test_windows_are_consecutive_right_padded_and_may_ask_at_the_targets_time(
    lengths: list[int], max_len: int, targets: int
) -> None:
    dataset = numbered(lengths)
    item_time = dict(zip(dataset.histories.items, dataset.histories.times, strict=True))
    for batch in window_batches(
        dataset, max_len=max_len, targets=targets, request_dropout=0.0, request_moments="next"
    ):
        assert batch.items.dtype == batch.times.dtype == torch.int64
        assert batch.items.shape[1] <= max_len
        for row, length in enumerate(batch.lengths.tolist()):
            items = batch.items[row].tolist()
            assert min(items[:length]) > 0
            assert not any(items[length:])
            assert not batch.targets[row, length:].any()
            assert batch.targets[row, : length - 1].tolist() == items[1:length]
            assert batch.times[row, :length].tolist() == [item_time[i] for i in items[:length]]
            assert (batch.times[row, length:] == UNKNOWN_TIME).all()
            asked = [item_time[i] for i in batch.targets[row, :length].tolist()]
            assert batch.request_times[row, :length].tolist() == asked


@given(lengths, st.integers(1, 12))
def test_a_prefix_has_its_last_items_and_one_target(lengths: list[int], max_len: int) -> None:
    dataset = numbered(lengths)
    offsets = dataset.histories.offsets
    flat = dataset.histories.items.tolist()
    for batch in prefix_batches(dataset, max_len=max_len, targets=7):
        assert batch.items.shape[1] == max_len
        for row, length in enumerate(batch.lengths.tolist()):
            (at,) = batch.targets[row].nonzero()
            assert at.tolist() == [length - 1]
            place = flat.index(int(batch.targets[row, length - 1]))
            begin = offsets[np.searchsorted(offsets, place, side="right") - 1]
            expected = flat[max(begin, place - max_len) : place]
            assert batch.items[row].tolist() == expected + [0] * (max_len - length)


def test_a_batch_carries_the_number_of_targets_asked_for() -> None:
    dataset = build_dataset(chain_log(users=300), Protocol(1, 1))
    counts = [int((b.targets > 0).sum()) for b in window_batches(dataset, targets=256)]
    assert sum(counts) == dataset.n_train_targets
    longest = int(dataset.train_lengths.max())
    assert all(abs(count - 256) <= longest + 10 for count in counts)
    padding = [float((b.items == 0).float().mean()) for b in window_batches(dataset, targets=256)]
    assert np.mean(padding) < 0.1, "windows of similar length must share a batch"


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    dataset = build_dataset(chain_log(), Protocol(1, 1))

    def epoch(seed: int, number: int) -> list[list[int]]:
        return [
            [*batch.items.flatten().tolist(), *batch.request_times.flatten().tolist()]
            for batch in window_batches(dataset, targets=64, max_len=6, seed=seed, epoch=number)
        ]

    assert epoch(1, 2) == epoch(1, 2)
    assert epoch(1, 2) != epoch(1, 3)
    assert epoch(1, 2) != epoch(2, 2)


@pytest.mark.parametrize("gap", [20_000, 30 * DAY_MS])
def test_a_third_of_the_moments_are_a_second_after_the_last_and_a_third_at_the_next(
    gap: int,
) -> None:
    last = np.full((300, 100), START_MS)
    asked = asked_between(last, last + gap, np.random.default_rng(0)) - last
    n = asked.size
    assert ((asked >= 500) & (asked <= gap)).all()
    at_next = asked == gap
    within = np.log(np.clip(asked, 1000, gap) / 1000) / np.log(gap / 1000)
    # Below 2 s: the third that comes soon, and the first of what is log-uniform from 1 s on.
    soon = 1 / 3 + np.log(2) / np.log(gap / 1000) / 3
    assert at_next.mean() == pytest.approx(1 / 3, abs=4 * (2 / 9 / n) ** 0.5)
    assert (asked < 2000).mean() == pytest.approx(soon, abs=4 * (0.25 / n) ** 0.5)
    later = within[(asked >= 2000) & ~at_next]
    start = np.log(2) / np.log(gap / 1000)
    assert np.quantile(later, [0.25, 0.5, 0.75]) == pytest.approx(
        start + (1 - start) * np.array([0.25, 0.5, 0.75]), abs=0.02
    )


@given(st.integers(0, 5000), st.integers(0, 99))
def test_a_moment_of_asking_is_within_the_gap_and_a_second_after_equal_times(
    gap: int, seed: int
) -> None:
    last = np.full((4, 8), START_MS)
    asked = asked_between(last, last + gap, np.random.default_rng(seed))
    assert (asked >= last).all()
    assert (asked <= last + (gap or 2000)).all()
    if gap == 0:
        again = asked_between(last, last, np.random.default_rng(seed))
        assert (asked == again).all()


def test_equal_times_are_asked_at_once_or_soon_after() -> None:
    last = np.full((300, 100), START_MS)
    asked = asked_between(last, last, np.random.default_rng(0)) - last
    soon = asked > 0
    assert soon.mean() == pytest.approx(1 / 3, abs=4 * (2 / 9 / asked.size) ** 0.5)
    assert asked[soon].min() >= 500
    assert asked[soon].max() <= 2000


def test_where_a_time_is_not_known_the_moment_is_that_of_the_next() -> None:
    known, unknown = np.full((5, 9), START_MS), np.full((5, 9), UNKNOWN_TIME)
    rng = np.random.default_rng(0)
    assert (asked_between(unknown, known, rng) == START_MS).all()
    assert (asked_between(known, unknown, rng) == UNKNOWN_TIME).all()
    assert (asked_between(unknown, unknown, rng) == UNKNOWN_TIME).all()


def test_windows_ask_between_an_interaction_and_the_next() -> None:
    dataset = build_dataset(chain_log(users=300), Protocol(1, 1))
    before, between = 0, 0
    for batch in window_batches(dataset, request_dropout=0.0, time_masking=0.0):
        followed = batch.targets > 0
        assert (batch.request_times[followed] >= batch.times[followed]).all()
        inner = followed[:, 1:]
        gap = batch.times[:, 1:] - batch.times[:, :-1]
        asked = batch.request_times[:, :-1] - batch.times[:, :-1]
        long = inner & (gap > 2000)
        assert (asked[long] <= gap[long]).all()
        between += int((asked[long] < gap[long]).sum())
        before += int(long.sum())
    assert between / before == pytest.approx(2 / 3, abs=4 * (2 / 9 / before) ** 0.5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_request_dropout_takes_whole_windows(share: float) -> None:
    dataset = build_dataset(chain_log(users=2000, length=8), Protocol(1, 1))
    without = total = 0
    for batch in window_batches(dataset, request_dropout=share):
        inside = batch.targets > 0
        unknown = ((batch.request_times == UNKNOWN_TIME) & inside).sum(1)
        assert ((unknown == 0) | (unknown == batch.lengths)).all()
        without += int((unknown > 0).sum())
        total += len(unknown)
    assert without / total == pytest.approx(share, abs=4 * (share / total) ** 0.5)


@given(lengths, st.integers(2, 15), st.sampled_from([0.3, 0.9]))
def test_masked_times_leave_gaps_from_the_latest_known_earlier_row(
    lengths: list[int], max_len: int, share: float
) -> None:
    dataset = numbered(lengths)
    options: dict[str, Any] = {
        "max_len": max_len, "targets": 30, "request_dropout": 0.0, "request_moments": "next",
    }  # fmt: skip
    masked = list(window_batches(dataset, time_masking=share, **options))
    plain = {}
    for batch in window_batches(dataset, **options):
        for row, items in enumerate(batch.items.tolist()):
            plain[items[0]] = (batch, row)
    for batch in masked:
        gaps, kinds, _ = past_gaps(
            batch.times,
            torch.full_like(batch.lengths, UNKNOWN_TIME),
            torch.zeros_like(batch.lengths),
        )
        for row, length in enumerate(batch.lengths.tolist()):
            whole, at = plain[int(batch.items[row, 0])]
            assert batch.items[row, :length].equal(whole.items[at, :length])
            assert batch.targets[row, :length].equal(whole.targets[at, :length])
            assert batch.request_times[row, :length].equal(whole.request_times[at, :length])
            known = None
            for place in range(length):
                now = int(batch.times[row, place])
                usable = now != UNKNOWN_TIME and known is not None
                assert (int(kinds[row, place]) == -1) == usable
                if usable:
                    assert int(gaps[row, place]) == now - known
                if now != UNKNOWN_TIME:
                    assert now == int(whole.times[at, place])
                    known = now


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=9), min_size=1, max_size=5))
def test_shuffled_ties_are_the_same_interactions(users: list[list[int]]) -> None:
    """Nothing leaves its user, its time or its part of the split; time 3 stands for unknown."""
    rows = [
        (f"u{user}", f"i{user}-{place}", UNKNOWN_TIME if time == 3 else time)
        for user, times in enumerate(users)
        for place, time in enumerate(times)
    ]
    dataset = build_dataset(make_log(rows), Protocol(1, 1))
    before = dataset.histories
    place = np.arange(len(before.items))
    free = (place < dataset.train_ends[before.users]) & (before.times != UNKNOWN_TIME)
    epochs = [ties_shuffled(dataset, seed=1, epoch=epoch).histories for epoch in range(24)]
    for epoch, after in enumerate(epochs):
        assert (after.times == before.times).all()
        assert (after.items[~free] == before.items[~free]).all()
        tied = list(zip(before.users[free], before.times[free], strict=True))
        assert sorted(zip(tied, after.items[free], strict=True)) == sorted(
            zip(tied, before.items[free], strict=True)
        )
        again = ties_shuffled(dataset, seed=1, epoch=epoch).histories
        assert (again.items == after.items).all()
    several = len(tied) > len(set(tied))
    # Rows of a user who lacks some time keep their order, and their ties may lie apart.
    if all(3 not in times for times in users):
        assert (len({after.items.tobytes() for after in epochs}) > 1) == several


@pytest.mark.parametrize("batches", [window_batches, prefix_batches])
def test_the_share_of_masked_times(batches: Callable[..., Iterator[Batch]]) -> None:
    dataset = build_dataset(chain_log(users=500), Protocol(1, 1))
    hidden = total = 0
    for batch in batches(dataset, time_masking=0.4):
        inside = batch.items > 0
        hidden += int(((batch.times == UNKNOWN_TIME) & inside).sum())
        total += int(inside.sum())
    assert hidden / total == pytest.approx(0.4, abs=4 * (0.24 / total) ** 0.5)


@given(lengths, st.integers(1, 9), st.integers(0, 30))
def test_a_window_knows_what_came_before_it(lengths: list[int], max_len: int, context: int) -> None:
    dataset = numbered(lengths)
    offsets = dataset.histories.offsets.tolist()
    for batch in window_batches(dataset, max_len=max_len, targets=20, context=context):
        for row, first in enumerate(batch.items[:, 0].tolist()):
            place = first - 1  # every item occurs once, in order
            begin = max(at for at in offsets if at <= place)
            expected = list(range(max(begin, place - context) + 1, first))
            if batch.before is None:
                assert expected == []
                continue
            n = int(batch.before.lengths[row])
            assert batch.before.items[row, :n].tolist() == expected
            assert not batch.before.items[row, n:].any()
            assert batch.before.times[row, :n].tolist() == [1000 * (i - 1) for i in expected] or (
                n == 0
            )


def test_gather_padded() -> None:
    dataset = numbered([3])
    items, times = gather_padded(dataset.histories, np.array([0, 2]), np.array([3, 1]))
    assert items.tolist() == [[1, 2, 3], [3, 0, 0]]
    assert times.tolist() == [[0, 1000, 2000], [2000, UNKNOWN_TIME, UNKNOWN_TIME]]

"""A model beside counting: ranks against brute force, and what is said of the difference."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from model import UNKNOWN_TIME
from tests.training.logs import DAY_MS, START_MS, chain_log, make_log
from training import comparison
from training.comparison import Comparison
from training.dataset import Dataset, Protocol, build_dataset
from training.forward.item_knn import DECAY, LAST, SHRINKAGE
from training.interactions import Log
from training.metrics import MISS


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(chain_log(users=40, length=16, items=15), Protocol(1, 1))


def compared(dataset: Dataset, rank: int = 1) -> Comparison:
    return Comparison.of(dataset, dataset.test, np.full(len(dataset.test), rank))


def training_part(dataset: Dataset) -> list[list[int]]:
    histories, ends = dataset.histories, dataset.train_ends
    return [
        histories.items[histories.offsets[user] : ends[user]].tolist() for user in range(len(ends))
    ]


def rank_of(target: int, scores: dict[int, float], history: list[int]) -> int:
    if target not in scores or target in history:
        return MISS
    return sum(score >= scores[target] for item, score in scores.items() if item not in history)


def test_recent_popularity_against_brute_force(dataset: Dataset) -> None:
    histories = dataset.histories
    popularity: dict[int, float] = {}
    for user, end in enumerate(dataset.train_ends):
        for place in range(histories.offsets[user], end):
            item, time = int(histories.items[place]), int(histories.times[place])
            weight = 2 ** ((time - START_MS) / (30 * DAY_MS))
            popularity[item] = popularity.get(item, 0) + weight
    found = compared(dataset).counted["recent popularity"]
    for row, user in enumerate(dataset.test.users):
        history = histories.items[histories.offsets[user] : dataset.test.ends[row]].tolist()
        assert found[row] == rank_of(int(dataset.test.items[row]), popularity, history)


def test_item_knn_against_brute_force(dataset: Dataset) -> None:
    part = training_part(dataset)
    counts = {item: sum(own.count(item) for own in part) for own in part for item in own}
    pairs: dict[tuple[int, int], int] = {}
    for own in part:
        for place, item in enumerate(own):
            for other in own[max(0, place - LAST) : place]:
                for pair in ((item, other), (other, item)):
                    pairs[pair] = pairs.get(pair, 0) + 1
    found = compared(dataset).counted["item-kNN"]
    histories, exact = dataset.histories, 0
    for row, user in enumerate(dataset.test.users):
        history = histories.items[histories.offsets[user] : dataset.test.ends[row]].tolist()
        scores = {
            item: sum(
                DECAY**k
                * pairs.get((last, item), 0)
                / np.sqrt((counts.get(last, 0) + SHRINKAGE) * (counts[item] + SHRINKAGE))
                for k, last in enumerate(reversed(history[-LAST:]))
            )
            for item in counts
        }
        target = int(dataset.test.items[row])
        first, last = (
            rank_of(target, {**scores, target: scores[target] + shift}, history)
            for shift in (1e-6, -1e-6)
        )
        assert min(first, last) <= found[row] <= max(first, last), "popularity decides ties"
        exact += first == last != MISS
    assert exact > 10


def test_what_the_user_had_and_what_is_unknown_are_misses_for_all() -> None:
    rows = [(f"u{n}", item, n + place) for n in range(4) for place, item in enumerate("abcd")]
    rows += [("v", item, 9 + place) for place, item in enumerate("abca")]
    rows += [("w", item, 20 + place) for place, item in enumerate("abcz")]
    dataset = build_dataset(make_log(rows), Protocol(1, 1), list("abcd"))
    found = compared(dataset)
    users = {dataset.user_ids[user]: row for row, user in enumerate(dataset.test.users)}
    for ranks in found.counted.values():
        assert ranks[users["v"]] == ranks[users["w"]] == MISS
        # Nobody's training part has it: it is as unknown as to a model.
        assert ranks[users["u0"]] == MISS
    assert found.before == 1
    assert "(1 of them had before: a miss for all)" in found.lines("test targets")[0]


def test_it_says_whether_the_model_is_better(dataset: Dataset) -> None:
    first, missed = compared(dataset), compared(dataset, MISS)
    assert first.figures()["model"] == {"HR@10": 1.0, "NDCG@10": 1.0}
    assert first.lines("test targets")[-1].startswith("the model alone is better than counting")
    assert "worse than counting" in missed.lines("test targets")[-1]
    knn = first.counted["item-kNN"]
    alike = Comparison(first.users, knn, first.counted, 0)
    assert alike.differences["item-kNN"].mean == 0
    assert "not surely better than counting here" in alike.lines("")[-1]
    for name in first.counted:
        low, high = first.differences[name].low, first.differences[name].high
        assert first.to_dict()[name]["model_less_this"][1:] == [low, high]
        assert low <= first.differences[name].mean <= high


def test_of_many_targets_always_the_same_are_drawn(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(dataset)
    monkeypatch.setattr(comparison, "MOST_TARGETS", 10)
    some, again = compared(dataset), compared(dataset)
    assert len(some.users) == 10
    rows = np.searchsorted(whole.users, some.users)
    for name, ranks in some.counted.items():
        assert (ranks == whole.counted[name][rows]).all()
        assert (ranks == again.counted[name]).all()


def test_of_many_interactions_the_newest_are_paired(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compared(dataset)
    monkeypatch.setattr(comparison, "MOST_PAIRED", int(dataset.train_lengths.sum()) // 2)
    some = compared(dataset)
    assert (some.counted["recent popularity"] == whole.counted["recent popularity"]).all()
    assert (some.counted["item-kNN"] != whole.counted["item-kNN"]).any()


def test_times_that_are_not_known_do_not_matter(dataset: Dataset) -> None:
    log = chain_log(users=20, length=12, items=10)
    hidden = Log(log.frame.with_columns(time_ms=pl.lit(UNKNOWN_TIME)))
    found = compared(build_dataset(hidden, Protocol(1, 1)))
    assert all((ranks >= 1).all() for ranks in found.counted.values())

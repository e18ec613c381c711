from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from model import UNKNOWN_TIME, ModelConfig
from tests.training.logs import DAY_MS, chain_log, make_log
from training.dataset import Dataset, Protocol, build_dataset
from training.interactions import Log
from training.recipe import model_config, split_log, training_config
from training.tables import InputError


@pytest.fixture(scope="module")
def short() -> Dataset:
    return build_dataset(chain_log(), Protocol(1, 1))


@pytest.fixture(scope="module")
def long() -> Dataset:
    return build_dataset(chain_log(users=10, length=80), Protocol(1, 1))


def test_gap_constants_come_from_the_data(short: Dataset) -> None:
    config = model_config(short)
    gaps = short.gap_range_ms()
    assert gaps is not None
    assert config.gap_range_s == (gaps[0] / 1000, gaps[1] / 1000)
    assert config.request_range_s == config.gap_range_s
    assert config.n_items == short.n_items
    same_time = make_log([("u", item, 5) for item in "abcd"])
    no_gaps = build_dataset(same_time, Protocol(1, 1))
    assert model_config(no_gaps).gap_range_s == ModelConfig(n_items=4).gap_range_s


def test_a_request_may_come_within_a_second_however_coarse_the_times_of_a_log_are() -> None:
    days = [
        (f"u{user}", item, day * DAY_MS) for user in range(3) for day, item in enumerate("abcd")
    ]
    config = model_config(build_dataset(make_log(days), Protocol(1, 1)))
    assert config.gap_range_s == (86_400, 86_400)
    assert config.request_range_s == (1, 86_400)


def test_a_log_is_split_forward_where_it_can_be(ml_100k: Log) -> None:
    protocol = Protocol(2, 2)
    dataset, fault = split_log(ml_100k, protocol)
    assert fault is None
    assert dataset.protocol == replace(protocol, split="forward")
    lacking = ml_100k.frame.with_columns(
        time_ms=pl.when(pl.col("user_id") == "7").then(UNKNOWN_TIME).otherwise("time_ms")
    )
    dataset, fault = split_log(replace(ml_100k, frame=lacking), protocol)
    assert fault is not None
    assert "needs every time" in fault
    assert dataset.protocol == protocol
    assert dataset.cut_ms is None


def test_a_log_of_sessions_is_validated_on_those_that_begin_later() -> None:
    rows = [
        (f"u{user:02}", item, 1000 * user + n)
        for user in range(20)
        for n, item in enumerate("xabcd" if user == 19 else "abcd")
    ]
    dataset, fault = split_log(make_log(rows), Protocol(2, 2))
    assert fault is None
    assert dataset.user_ids == [f"u{user:02}" for user in range(20)]
    # Whatever can be asked: after an item that training knows.
    validated = [
        (dataset.user_ids[user], dataset.item_ids[item - 1])
        for user, item in zip(dataset.validation.users, dataset.validation.items, strict=True)
    ]
    later = ("b", "c", "d")
    assert validated == [(user, item) for user in ("u18", "u19") for item in later]
    assert dataset.train_lengths.tolist() == [4] * 18 + [0, 0]


def test_a_log_in_which_nobody_goes_on_is_not_split_forward() -> None:
    rows = [(f"u{user:02}", item, n) for user in range(20) for n, item in enumerate("abcd")]
    rows += [(f"v{user}", "a", 1000) for user in range(12)]
    dataset, fault = split_log(make_log(rows), Protocol(2, 2))
    assert fault is not None
    assert "no user is left to validate" in fault
    assert dataset.protocol.split == "leave-one-out"
    with pytest.raises(InputError, match="no interactions are left in the 99-core"):
        split_log(make_log(rows), Protocol(99, 99))


def test_short_histories_get_more_dropout(short: Dataset, long: Dataset) -> None:
    assert model_config(short).dropout == 0.5
    assert model_config(long).dropout == 0.2


def test_as_many_times_are_hidden_as_are_missing(long: Dataset) -> None:
    assert training_config(long).time_masking == 0
    times = long.histories.times.copy()
    times[::4] = UNKNOWN_TIME
    some = replace(long, histories=replace(long.histories, times=times))
    share = float(np.mean(times == UNKNOWN_TIME))
    assert training_config(some).time_masking == pytest.approx(share, abs=0.005)


def test_items_start_where_they_meet_and_the_average_is_kept(long: Dataset) -> None:
    config = training_config(long)
    assert config.item_init == "cooccurrence"
    assert 0 < config.ema < 1


def test_equal_times_are_shuffled_where_their_order_is_chance() -> None:
    rng = np.random.default_rng(0)

    def of(agree: float) -> Dataset:
        rows = []
        for user in range(400):
            pair = ["a", "b"] if rng.random() < agree else ["b", "a"]
            rows += [(f"u{user}", item, time) for time, item in enumerate(["c", "d"])]
            rows += [(f"u{user}", item, 5) for item in pair]
            rows += [(f"u{user}", item, time) for time, item in enumerate(["e", "f"], 6)]
        return build_dataset(make_log(rows), Protocol(1, 1))

    for agree in (0.5, 0.9):
        dataset = of(agree)
        alike = agree**2 + (1 - agree) ** 2  # of two users
        assert dataset.tie_agreement() == pytest.approx(alike, abs=0.06)
        assert training_config(dataset).shuffle_ties == (alike < 0.6)
    numbered = make_log([("u", item, time) for time, item in enumerate("abcdef")])
    dataset = build_dataset(numbered, Protocol(1, 1))
    assert dataset.tie_agreement() is None
    assert not training_config(dataset).shuffle_ties


def test_the_quick_recipe_is_few_epochs_at_a_falling_rate(short: Dataset) -> None:
    full, quick = training_config(short), training_config(short, "quick")
    assert (full.schedule, quick.schedule) == ("constant", "linear")
    assert quick.max_epochs < 10 < full.max_epochs
    assert training_config(short, "quick", max_epochs=2, lr=1e-3).max_epochs == 2
    assert quick.shuffle_ties == full.shuffle_ties
    assert model_config(short, "quick").dropout == model_config(short).dropout / 2


def test_what_is_given_counts(short: Dataset) -> None:
    assert model_config(short, dropout=0.3).dropout == 0.3
    config = training_config(short, item_init="random", ema=0.5, time_masking=0.25, lr=1e-3)
    assert (config.item_init, config.ema, config.time_masking, config.lr) == (
        "random", 0.5, 0.25, 1e-3,
    )  # fmt: skip

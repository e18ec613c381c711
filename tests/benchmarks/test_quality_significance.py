"""The paired bootstrap on cases with a known answer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from training.metrics import MISS, gains, ranking_metrics
from training.tables import InputError

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed
from benchmarks.ranks import Ranks, ResultError, View
from benchmarks.significance import compare, paired_bootstrap

VIEWS = (View(), View())


def ranks_of(values: np.ndarray) -> Ranks:
    names = np.array([f"u{i}é" for i in range(len(values))])
    targets = np.array([f"t{i % 7}" for i in range(len(values))])
    lengths = np.arange(1, len(values) + 1, dtype=np.int64)
    return Ranks(names, targets, lengths, {View(): values.astype(np.int64)})


@pytest.mark.parametrize("metric", ["HR@10", "NDCG@20", "MRR@50"])
def test_gains_are_the_metrics_of_each_user(metric: str) -> None:
    ranks = np.append(np.random.default_rng(0).integers(1, 100, 500), MISS)
    assert gains(ranks, metric).mean() == pytest.approx(ranking_metrics(ranks)[metric])


def test_the_interval_is_that_of_drawing_users() -> None:
    draw = np.random.default_rng(0)
    a = gains(draw.integers(1, 30, 800), "NDCG@10")
    b = np.where(draw.random(800) < 0.7, a, gains(draw.integers(1, 20, 800), "NDCG@10"))
    found = paired_bootstrap(a, b)
    users = draw.integers(0, 800, (10_000, 800))
    expected = np.quantile((b - a)[users].mean(1), [0.025, 0.975])
    error = (b - a).std() / np.sqrt(800)
    assert found.difference == pytest.approx((b - a).mean())
    assert [found.low, found.high] == pytest.approx(expected, abs=0.06 * error)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.04)
    ratio = b[users].mean(1) / a[users].mean(1) - 1
    assert [found.relative_low, found.relative_high] == pytest.approx(
        np.quantile(ratio, [0.025, 0.975]), abs=0.01
    )


def test_pairs_are_kept_together() -> None:
    a = gains(np.random.default_rng(1).integers(1, 30, 500), "MRR@10")
    same = paired_bootstrap(a, a)
    assert (same.difference, same.low, same.high, same.relative) == (0, 0, 0, 0)
    more = paired_bootstrap(a, a + 0.25)
    assert (more.low, more.high) == pytest.approx((0.25, 0.25))


def test_seeds_decide_the_draw() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.random(300), draw.random(300)
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


def test_the_interval_covers_the_truth() -> None:
    """Of 200 samples with a known difference, 95 % of the intervals hold it."""
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        a, b = draw.integers(0, 2, (2, 400)).astype(float)
        found = paired_bootstrap(a, b, resamples=500)
        held += found.low <= 0 <= found.high
    assert 180 <= held <= 199


def test_nothing_to_divide_by_is_not_a_number() -> None:
    found = paired_bootstrap(np.zeros(5), np.ones(5))
    assert np.isnan([found.relative, found.relative_low, found.relative_high]).all()


def test_files_and_folders_of_seeds(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    seeds = [draw.integers(1, 30, 90) for _ in range(3)]
    for number, values in enumerate(seeds):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
        ranks_of(values).save(tmp_path / "a" / str(number) / "ranks.npz")
    ranks_of(np.ones(90)).save(tmp_path / "b.npz")
    found = compare(tmp_path / "a", tmp_path / "b.npz", VIEWS)
    assert found.a == pytest.approx(np.mean([gains(v, "NDCG@10") for v in seeds]))
    assert found.b == 1
    one = compare(tmp_path / "a" / "1" / "result.json", tmp_path / "b.npz", VIEWS, longer_than=50)
    assert (one.users, one.a) == (40, pytest.approx(gains(seeds[1][50:], "NDCG@10").mean()))


def test_unlike_results_are_refused(tmp_path: Path) -> None:
    ranks_of(np.ones(90)).save(tmp_path / "a.npz")
    shorter = ranks_of(np.ones(90))
    Ranks(shorter.users, shorter.targets[::-1], shorter.lengths, shorter.ranks).save(
        tmp_path / "b.npz"
    )
    with pytest.raises(ResultError, match="not measured on the same users and targets"):
        compare(tmp_path / "a.npz", tmp_path / "b.npz", VIEWS)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ResultError, match=r"c.npz: not a file of ranks"):
        compare(tmp_path / "a.npz", tmp_path / "c.npz", VIEWS)
    with pytest.raises(ResultError, match="no user has more than 99"):
        compare(tmp_path / "a.npz", tmp_path / "a.npz", VIEWS, longer_than=99)
    with pytest.raises(InputError, match="metric must be"):
        compare(tmp_path / "a.npz", tmp_path / "a.npz", VIEWS, metric="AUC")

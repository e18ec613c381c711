"""The bootstrap over users, beside one that a reader can follow."""

from __future__ import annotations

import numpy as np

from training.bootstrap import interval, resampled_means
from training.metrics import gains


def test_the_interval_is_of_users_drawn_with_their_events() -> None:
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 30, 300)
    users = np.repeat(np.arange(300), sizes)
    values = np.repeat(draw.random(300), sizes)  # a user's events are all alike
    low, high = interval(users, values, resamples=1000)
    means = []
    for _ in range(1000):
        drawn = draw.integers(0, 300, 300)
        parts = np.bincount(users, values)[drawn].sum(), sizes[drawn].sum()
        means.append(parts[0] / parts[1])
    expected = np.quantile(means, [0.025, 0.975])
    assert np.allclose([low, high], expected, atol=0.01)
    assert high - low > 0.04  # events drawn one by one: 0.017


def test_metrics_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 100, 400)
    values = np.stack([gains(rng.integers(1, 20, 400), "MRR@10")] * 2, axis=1)
    values[:, 1] *= 2
    means = resampled_means(users, values, resamples=50)
    assert means.shape == (50, 2)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    assert interval(users, values[:, 0], resamples=50) == tuple(
        np.quantile(means[:, 0], [0.025, 0.975])
    )

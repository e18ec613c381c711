"""How far means move with other users of the same kind: a bootstrap over users.

A user's events are drawn together: they are more alike than those of different users.

Names: T events, M metrics, R resamples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.dataset import Int64s

Float64s = npt.NDArray[np.float64]
LEVEL = 0.95
CHUNK = 1 << 22


def resampled_means(users: Int64s, values: Float64s, *, resamples: int, seed: int = 0) -> Float64s:
    """Means (R, M) over events (T, M), their users (T) drawn with replacement: the same draw for
    all metrics."""
    _, user = np.unique(users, return_inverse=True)
    n = int(user.max()) + 1
    columns = [np.bincount(user, column, n) for column in values.T]
    sums = np.stack([*columns, np.bincount(user, minlength=n)], axis=1)
    # Drawing n users is drawing how many there are of each distinct row: a user's values are few.
    rows, counts = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, CHUNK // len(rows))
    means = []
    for done in range(0, resamples, at_once):
        drawn = rng.multinomial(n, counts / n, size=min(at_once, resamples - done)) @ rows
        means.append(drawn[:, :-1] / drawn[:, -1:])
    found: Float64s = np.concatenate(means)
    return found


def percentiles(means: Float64s, level: float = LEVEL) -> tuple[float, float]:
    """The interval that holds the share `level` of resampled means (R)."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    users: Int64s, values: Float64s, *, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Of the mean over events (T)."""
    return percentiles(
        resampled_means(users, values[:, None], resamples=resamples, seed=seed)[:, 0]
    )

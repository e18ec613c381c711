"""Is one model better than another for the same users? A paired bootstrap over users.

The interval answers for the users: how far the difference moves with other users of the same
kind. How far it moves with the training seed is the standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.ranks import RANKS, RESULT, Ranks, ResultError, View
from training.bootstrap import LEVEL, Float64s, percentiles, resampled_means
from training.metrics import gains


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over users of A and B, B - A and (B - A) / A, each with its interval.

    The relative ones are NaN where A is 0.
    """

    users: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def paired_bootstrap(
    a: Float64s, b: Float64s, *, resamples: int = 10_000, seed: int = 0, level: float = LEVEL
) -> Difference:
    """Percentile interval of mean(b) - mean(a), users drawn with replacement, the same for both.

    Raises ResultError if there are no users, or not the same number of both.
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ResultError(f"a paired bootstrap needs the same users twice, not {len(a)}, {len(b)}")
    means = resampled_means(
        np.arange(len(a)), np.stack([a, b], axis=1), resamples=resamples, seed=seed
    )
    difference = means[:, 1] - means[:, 0]
    low, high = percentiles(difference, level)
    if bool((means[:, 0] > 0).all()):
        relative_low, relative_high = percentiles(difference / means[:, 0], level)
    else:
        relative_low = relative_high = np.nan
    mean_a, mean_b = float(a.mean()), float(b.mean())
    return Difference(
        users=len(a),
        a=mean_a,
        b=mean_b,
        difference=mean_b - mean_a,
        low=low,
        high=high,
        relative=mean_b / mean_a - 1 if mean_a else float("nan"),
        relative_low=relative_low,
        relative_high=relative_high,
    )


def load_seeds(path: Path) -> list[Ranks]:
    """The ranks at `path`: a file of ranks, the result beside it, its folder, or the folder of a
    row with a folder a seed. Raises ResultError where there are none."""
    if path.name == RESULT:
        path = path.parent
    if path.is_dir():
        found = [path / RANKS] if (path / RANKS).exists() else sorted(path.glob(f"*/{RANKS}"))
        if not found:
            raise ResultError(f"{path}: no {RANKS} in it or in a folder of it; measure it first")
        return [Ranks.load(file) for file in found]
    return [Ranks.load(path)]


def user_gains(seeds: Sequence[Ranks], view: View, metric: str, source: Path) -> Float64s:
    """Each user's gain, the mean over the seeds. Raises ResultError where a seed lacks the view."""
    for seed in seeds:
        if view not in seed.ranks:
            known = "; ".join(str(known) for known in seed.ranks)
            raise ResultError(f"{source}: nothing was measured with {view}; there is: {known}")
    mean: Float64s = np.mean([gains(seed.ranks[view], metric) for seed in seeds], axis=0)
    return mean


def compare(
    a: Path,
    b: Path,
    views: tuple[View, View],
    *,
    metric: str = "NDCG@10",
    longer_than: int = 0,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """B against A over their common test targets; several seeds of a row are averaged per user.

    Args:
        a, b: as for `load_seeds`; views: how A and how B is asked.
        longer_than: only users with more interactions than this before their target.

    Raises ResultError where the two were not measured on the same targets.
    """
    seeds_a, seeds_b = load_seeds(a), load_seeds(b)
    first = seeds_a[0]
    for other in (*seeds_a, *seeds_b):
        if not (
            np.array_equal(first.users, other.users)
            and np.array_equal(first.targets, other.targets)
        ):
            raise ResultError(
                f"{a} and {b} were not measured on the same users and targets; "
                "compare results of the same data set and split"
            )
    chosen = first.lengths > longer_than
    if not chosen.any():
        raise ResultError(f"no user has more than {longer_than} interactions before the target")
    return paired_bootstrap(
        user_gains(seeds_a, views[0], metric, a)[chosen],
        user_gains(seeds_b, views[1], metric, b)[chosen],
        resamples=resamples,
        seed=seed,
    )

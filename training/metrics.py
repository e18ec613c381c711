"""Ranking metrics from ranks: HR, NDCG and MRR, one relevant item a user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.dataset import Int64s
from training.tables import InputError

CUTOFFS = (10, 20, 50)
MISS = 2**31
"""The rank of a target that can't be recommended: unknown to the model, or filtered as seen."""


def gains(ranks: Int64s, metric: str) -> npt.NDArray[np.float64]:
    """What each target adds to the mean `HR@k`, `NDCG@k` or `MRR@k`: (T); ranks from 1.

    Raises InputError for another metric.
    """
    name, _, cutoff = metric.partition("@")
    if name not in ("HR", "NDCG", "MRR") or not cutoff.isdecimal() or int(cutoff) < 1:
        raise InputError(f"metric must be HR@k, NDCG@k or MRR@k with k from 1, not {metric!r}")
    hit = ranks <= int(cutoff)
    rank = np.where(hit, ranks, 1).astype(np.float64)
    value = {"HR": np.ones_like(rank), "NDCG": 1 / np.log2(rank + 1), "MRR": 1 / rank}[name]
    return np.where(hit, value, 0.0)


def ranking_metrics(ranks: Int64s, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`HR@k`, `NDCG@k`, `MRR@k` means over users; ranks from 1."""
    metrics = [f"{name}@{k}" for k in cutoffs for name in ("HR", "NDCG", "MRR")]
    return {metric: float(gains(ranks, metric).mean()) for metric in metrics}

"""Ranking metrics from ranks: HR, NDCG and MRR, one relevant item a user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.dataset import Int64s

CUTOFFS = (10, 20, 50)
MISS = 2**31
"""The rank of a target that can't be recommended: unknown to the model, or filtered as seen."""


def ranking_metrics(ranks: Int64s, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """`HR@k`, `NDCG@k`, `MRR@k` means over users; ranks from 1."""
    found = {}
    for k in cutoffs:
        hit = ranks <= k
        rank = np.where(hit, ranks, 1).astype(np.float64)
        found[f"HR@{k}"] = float(hit.mean())
        found[f"NDCG@{k}"] = float((hit / np.log2(rank + 1)).mean())
        found[f"MRR@{k}"] = float((hit / rank).mean())
    return found

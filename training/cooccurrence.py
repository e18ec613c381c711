"""Item vectors from co-occurrence counts: where the item embeddings of a training can start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.dataset import Dataset, Int64s

WINDOW = 50
"""Two interactions of a user co-occur when at most this many places lie between them and ..."""

MAX_PAIRS = 100_000_000
"""... fewer where the log is so long that there would be more pairs than this."""

SMOOTHING = 0.75  # of the context distribution (Levy, Goldberg and Dagan, TACL 2015, section 3.1)
_POWER_ITERATIONS = 4


def cooccurrence_vectors(dataset: Dataset, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors whose products approximate how much more often items meet than by chance.

    U sqrt(S) of a truncated singular value decomposition of the positive pointwise mutual
    information of item pairs within users' *training* interactions (Levy and Goldberg, NeurIPS
    2014), each row scaled to length 1. Memory is of the order of the distinct pairs, not of V^2.

    Returns:
        vectors (V, width) float32 and known (V): False where an item never meets another, and
        its vector is 0. Where `width` is above V the rest of the columns are 0.
    """
    n_items = dataset.n_items
    pairs, counts = _pair_counts(dataset)
    first, second = torch.from_numpy(pairs // n_items), torch.from_numpy(pairs % n_items)
    count = torch.from_numpy(counts).double()
    total = torch.zeros(n_items, dtype=torch.float64).index_add_(0, first, count)
    context = total**SMOOTHING
    expected = total[first] * (context / context.sum().clamp(min=1e-12))[second]
    information = (count / expected).log().clamp(min=0).float()
    matrix = torch.sparse_coo_tensor(
        torch.stack([first, second]),
        information,
        (n_items, n_items),
        is_coalesced=True,
        check_invariants=False,
    )
    rank = min(width, n_items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(
            matrix, q=min(rank + 16, n_items), niter=_POWER_ITERATIONS
        )
    vectors = torch.zeros(n_items, width)
    vectors[:, :rank] = left[:, :rank] * values[:rank].sqrt()
    length = vectors.norm(dim=1, keepdim=True)
    known = length[:, 0] > 1e-6
    return torch.where(known[:, None], vectors / length.clamp(min=1e-6), 0), known


def _pair_counts(dataset: Dataset) -> tuple[Int64s, Int64s]:
    """Ordered pairs first * V + second (items from 0), both ways round, and how often each is."""
    histories, n_items = dataset.histories, dataset.n_items
    items = histories.items.astype(np.int64) - 1
    end = dataset.train_ends[histories.users]
    place = np.arange(len(items))
    window = max(1, min(WINDOW, MAX_PAIRS // max(1, len(items))))
    found, counts = [], []
    for distance in range(1, window + 1):
        left = np.flatnonzero(place + distance < end)
        if not len(left):
            break
        a, b = items[left], items[left + distance]
        keys, count = np.unique(
            np.concatenate([a * n_items + b, b * n_items + a]), return_counts=True
        )
        found.append(keys)
        counts.append(count)
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    keys, index = np.unique(np.concatenate(found), return_inverse=True)
    summed = np.bincount(index, np.concatenate(counts), len(keys))
    return keys, summed.astype(np.int64)

"""Exact retrieval: every item scored by one matrix product, some masked, the best returned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artefact import Items


@dataclass(frozen=True)
class Ranking:
    """The best items of one request, best first: indices in 1..V and their scores."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]


class ExactRetrieval:
    """Top-K over the whole catalogue; equal scores are returned in the order of the item index.

    Args:
        embedding: (V + 1, D), row 0 the padding's.
    """

    def __init__(self, embedding: Tensor, items: Items) -> None:
        self._embedding = embedding.detach()
        popularity = np.asarray(items.popularity)
        self._popular = np.argsort(-popularity, kind="stable") + 1
        self._popularity = popularity.astype(np.float32)

    def __len__(self) -> int:
        return len(self._popular)

    def top(
        self, query_BD: Tensor, masked: list[NDArray[np.int32]], ks: list[int]
    ) -> list[Ranking]:
        """The best `ks[i]` items of each query, fewer where so many are not left.

        Args:
            masked: for each query, item indices that must not be returned.
        """
        scores = query_BD @ self._embedding.T
        scores[:, 0] = -torch.inf
        sizes = [len(mask) for mask in masked]
        if any(sizes):
            rows = np.repeat(np.arange(len(masked)), sizes)
            columns = np.concatenate(masked).astype(np.int64)
            scores[torch.from_numpy(rows), torch.from_numpy(columns)] = -torch.inf
        widest = min(max(ks), scores.shape[1])
        values, indices = (t.cpu().numpy() for t in scores.topk(widest, dim=1))
        rankings = []
        for row, k in enumerate(ks):
            value, index = values[row], indices[row]
            order = np.lexsort((index, -value))
            value, index = value[order][:k], index[order][:k]
            left = np.isfinite(value)
            rankings.append(Ranking(index[left], value[left]))
        return rankings

    def popular(self, masked: NDArray[np.int32], k: int) -> Ranking:
        """The most popular items of the training part; the score is the number of interactions."""
        head = self._popular[: k + len(masked)]
        best = head[~np.isin(head, masked)][:k]
        return Ranking(best, self._popularity[best - 1])

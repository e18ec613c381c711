"""The best items for a query, some masked: exactly by one matrix product, or found by an index.

An index proposes candidates. What may not be returned is taken out of them, what is left gets its
exact score, and who is left with too few asks for more, in the end of the whole catalogue.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artefact import Artefact, Items

if TYPE_CHECKING:
    from service.item_index import ItemIndex

logger = logging.getLogger(__name__)

How = Literal["auto", "exact", "index"]

INDEX_FROM = 100_000
"""Catalogues of so many items have an index by default; `python -m benchmarks.catalogue` is why."""
LEAST_CANDIDATES, MOST_CANDIDATES = 64, 4096
SURE_PART = 3
"""What is returned must be in the best third of the candidates: further down, items that an
index took for worse than they are may be missing."""


@dataclass(frozen=True)
class Ranking:
    """The best items of one request, best first: indices in 1..V and their scores. `indexed`: an
    index found them."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    indexed: bool = False


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
        self, query_BD: Tensor, masked: Sequence[NDArray[np.int32]], ks: Sequence[int]
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

    def rank(self, query_D: Tensor | None, candidates: NDArray[np.int32]) -> Ranking:
        """All of these items, best first by their exact scores; without a query by popularity.
        Equal ones are in the order of the item index."""
        if query_D is None:
            scores = self._popularity[candidates - 1]
        else:
            index = torch.from_numpy(candidates.astype(np.int64)).to(query_D.device)
            scores = (self._embedding[index] @ query_D).cpu().numpy()
        order = np.lexsort((candidates, -scores))
        return Ranking(candidates[order].astype(np.int64), scores[order])

    def popular(self, masked: NDArray[np.int32], k: int) -> Ranking:
        """The most popular items of the training part; the score is the number of interactions."""
        head = self._popular[: k + len(masked)]
        best = head[~np.isin(head, masked)][:k]
        return Ranking(best, self._popularity[best - 1])


class IndexRetrieval(ExactRetrieval):
    """Top-K among the candidates of an index; for the few it can't serve, over the whole catalogue.

    Args:
        embedding: as for ExactRetrieval.
        index: of rows 1 to V.
    """

    def __init__(self, embedding: Tensor, items: Items, index: ItemIndex) -> None:
        super().__init__(embedding, items)
        self._vectors = self._embedding.cpu()
        self._index = index
        self._most = min(MOST_CANDIDATES, len(self) // 4)
        self._is_masked = np.zeros(len(self) + 1, np.bool_)

    def top(
        self, query_BD: Tensor, masked: Sequence[NDArray[np.int32]], ks: Sequence[int]
    ) -> list[Ranking]:
        query = query_BD.float().cpu()
        found: dict[int, Ranking] = {}
        waiting: dict[int, list[int]] = defaultdict(list)
        for row, k in enumerate(ks):
            waiting[_power_of_two(max(LEAST_CANDIDATES, SURE_PART * k))].append(row)
        while waiting:
            count = min(waiting)
            rows = waiting.pop(count)
            if count > self._most:
                rows = sorted(sum(waiting.values(), rows))
                exact = super().top(
                    query_BD[rows], [masked[r] for r in rows], [ks[r] for r in rows]
                )
                found.update(zip(rows, exact, strict=True))
                break
            items, scores, allowed = self._candidates(
                query[rows], [masked[row] for row in rows], count
            )
            near = allowed[:, : count // SURE_PART].sum(1)
            for place, row in enumerate(rows):
                if near[place] < ks[row]:
                    waiting[4 * count].append(row)
                    continue
                best = np.flatnonzero(allowed[place])[: ks[row]]
                found[row] = Ranking(items[place, best], scores[place, best], indexed=True)
        return [found[row] for row in range(len(ks))]

    def _candidates(
        self, query_BD: Tensor, masked: Sequence[NDArray[np.int32]], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """(B, count) items by their exact scores, those scores, and which may be returned."""
        items = self._index.search(query_BD.numpy(), count) + 1
        vectors = self._vectors[torch.from_numpy(items)]
        scores: NDArray[np.float32] = torch.bmm(vectors, query_BD[:, :, None])[:, :, 0].numpy()
        allowed = items > 0
        scores[~allowed] = -np.inf
        for row, mask in enumerate(masked):
            self._is_masked[mask] = True
            allowed[row] &= ~self._is_masked[items[row]]
            self._is_masked[mask] = False
        order = np.lexsort((items, -scores), axis=1)
        return (
            np.take_along_axis(items, order, 1),
            np.take_along_axis(scores, order, 1),
            np.take_along_axis(allowed, order, 1),
        )


def open_retrieval(artefact: Artefact, how: How, folder: Path) -> ExactRetrieval:
    """The way chosen to search an artefact's items.

    Args:
        how: `auto` is an index for INDEX_FROM items or more on a CPU, if its library is installed.
        folder: where indexes are kept.
    """
    weight, size = artefact.model.item_embedding.weight, len(artefact.items)
    if how == "auto" and size >= INDEX_FROM and weight.device.type == "cpu":
        if find_spec("faiss") is not None:
            how = "index"
        else:
            logger.warning(
                "every request is compared with all of %d items: the extra `index` is faster "
                "(pip install 'tim4rec[index]')",
                size,
            )
    if how == "index":
        from service import item_index  # of an extra

        if size >= item_index.LEAST_ITEMS:
            vectors = weight.detach().float().cpu().numpy()[1:]
            index = item_index.open_index(folder, artefact.identity, vectors)
            return IndexRetrieval(weight, artefact.items, index)
        logger.info("%d items are too few for an index: retrieval is exact", size)
    return ExactRetrieval(weight, artefact.items)


def _power_of_two(least: int) -> int:
    """The next one, so that a wave has few different numbers of candidates."""
    return 1 << (least - 1).bit_length()

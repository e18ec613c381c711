"""The best items for a query, some masked: exactly by one matrix product, or found by an index.

An index proposes candidates. What may not be returned is taken out of them, what is left gets its
exact score, and who is left with too few asks for more, in the end of the whole catalogue.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artefact import Artefact, Items
from service.catalogue import numba_scores, numba_top
from service.catalogue.view import CatalogueView, Flags, Selection

if TYPE_CHECKING:
    from service.catalogue.item_index import ItemIndex

logger = logging.getLogger(__name__)

How = Literal["auto", "exact", "index"]

NO_ITEMS: NDArray[np.int32] = np.empty(0, np.int32)

INDEX_FROM = 100_000
"""Catalogues of so many items have an index by default; `python -m benchmarks.catalogue` is why."""
LEAST_CANDIDATES, MOST_CANDIDATES = 64, 4096
FEW = 8
"""Queries up to which a BLAS takes longer than a compiled loop."""
APART_BELOW = 4
"""Queries below which, in an indexed catalogue, each is multiplied by itself."""
SURE_PART = 3
"""What is returned must be in the best third of the candidates: further down, items that an
index took for worse than they are may be missing."""


@dataclass(frozen=True)
class Ranking:
    """The best items of one request, best first: their rows and scores. `indexed`: an index found
    them; `recent`: they are what is popular of late, by their numbers."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    indexed: bool = False
    recent: bool = False
    promoted: NDArray[np.bool_] | None = None
    """Which have their places by a promotion; None: none."""


class ExactRetrieval:
    """Top-K over the whole catalogue; equal scores are returned in the order of the item index.

    Args:
        embedding: (V + 1, D), row 0 the padding's.
        repeat_bias: added to the scores of items that the user has had.

    Attributes:
        shelf: what there is besides the vocabulary, and what may not be returned. Each call takes
            the one that is there when it begins.
    """

    def __init__(self, embedding: Tensor, items: Items, repeat_bias: float = 0.0) -> None:
        self._embedding = embedding.detach()
        self.repeat_bias = repeat_bias
        popularity = np.asarray(items.popularity)
        self._popular = np.argsort(-popularity, kind="stable") + 1
        self._popularity = popularity.astype(np.float32)
        self.shelf = CatalogueView(len(items))
        self._biased: tuple[CatalogueView, Tensor] | None = None
        self.show_recent([])

    def __len__(self) -> int:
        return len(self._popular)

    def top(
        self,
        query_BD: Tensor,
        masked: Sequence[NDArray[np.int32]],
        ks: Sequence[int],
        selections: Sequence[Selection | None] | None = None,
        had: Sequence[NDArray[np.int32]] | None = None,
        there: tuple[Tensor, Tensor] | None = None,
    ) -> list[Ranking]:
        """The best `ks[i]` items of each query, fewer where so many are not left.

        Args:
            masked: for each query, rows that must not be returned.
            selections: for each query, what only may be returned; None: everything.
            had: for each query, items that the user has had, to be weighed; None: of none.
            there: `places` of `masked` and `had`, where they are on the device already.
        """
        return self._top(self.shelf, query_BD, masked, ks, selections, had, there)

    def _top(
        self,
        shelf: CatalogueView,
        query_BD: Tensor,
        masked: Sequence[NDArray[np.int32]],
        ks: Sequence[int],
        selections: Sequence[Selection | None] | None,
        had: Sequence[NDArray[np.int32]] | None = None,
        there: tuple[Tensor, Tensor] | None = None,
    ) -> list[Ranking]:
        scores = self._products(query_BD)
        if shelf.vectors is not None:
            scores = torch.cat([scores, query_BD @ shelf.vectors.T], 1)
        if shelf.blocked is not None:
            scores += self._bias(shelf)
        outside: dict[int, Tensor] = {}  # many ask for the same
        for row, selection in enumerate(selections or ()):
            if selection is not None:
                if id(selection) not in outside:
                    out = torch.from_numpy(~selection.on(shelf))
                    outside[id(selection)] = out.to(scores.device)
                scores[row].masked_fill_(outside[id(selection)], -torch.inf)
        if not self.repeat_bias:
            had = None
        if there is None and scores.device.type == "cpu":
            best = numba_top.top(scores.numpy(), masked, had, self.repeat_bias, ks)
            return [Ranking(*one) for one in best]
        scores[:, 0] = -torch.inf
        masked_at, had_at = _on(scores.device, masked, had) if there is None else there
        if had_at.shape[1]:
            at = had_at[0], had_at[1]
            scores[at] = scores[at] + self.repeat_bias  # once where one stands there twice
        if masked_at.shape[1]:
            scores[masked_at[0], masked_at[1]] = -torch.inf
        widest = min(max(ks), scores.shape[1])
        values, indices = _brought(*scores.topk(widest, dim=1))
        if (values[:, 1:] == values[:, :-1]).any():
            order = np.lexsort((indices, -values), axis=1)
            values = np.take_along_axis(values, order, 1)
            indices = np.take_along_axis(indices, order, 1)
        counts = np.isfinite(values).sum(1).tolist()
        sizes = [min(k, count) for k, count in zip(ks, counts, strict=True)]
        return [Ranking(indices[i, :size], values[i, :size]) for i, size in enumerate(sizes)]

    def _products(self, query_BD: Tensor) -> Tensor:
        """(B, V + 1) of the queries and the vocabulary's vectors."""
        if self._embedding.device.type != "cpu":
            return query_BD @ self._embedding.T
        # For many, numpy's BLAS takes half of torch's time.
        query = query_BD.numpy()
        product = numba_scores.scores if len(query) <= FEW else np.matmul
        return torch.from_numpy(product(query, self._columns))

    @cached_property
    def _columns(self) -> NDArray[np.float32]:
        """A copy whose rows are the vectors' components: the product takes half of the time."""
        return np.ascontiguousarray(self._embedding.numpy().T)

    def _bias(self, shelf: CatalogueView) -> Tensor:
        """The shelf's, on the device."""
        if self._biased is None or self._biased[0] is not shelf:
            self._biased = shelf, torch.from_numpy(shelf.bias).to(self._embedding.device)
        return self._biased[1]

    def rank(
        self,
        query_D: Tensor | None,
        candidates: NDArray[np.int32],
        had: NDArray[np.int32] = NO_ITEMS,
    ) -> Ranking:
        """All of these items, best first by their exact scores; without a query by popularity.
        Equal ones are in the order of the item index. `had`: what the user has had."""
        if query_D is None:
            ever = self._counts(candidates)
            recent, counted = self._recent
            numbers = dict(zip(recent.tolist(), counted.tolist(), strict=True))
            scores = np.array([numbers.get(item, 0) for item in candidates.tolist()], np.float32)
            order = np.lexsort((candidates, -ever, -scores))
            scores = scores if numbers else ever
            return Ranking(candidates[order].astype(np.int64), scores[order], recent=bool(numbers))
        scores = (self.vectors(candidates.astype(np.int64)) @ query_D).cpu().numpy()
        scores += np.float32(self.repeat_bias) * np.isin(candidates, had)
        order = np.lexsort((candidates, -scores))
        return Ranking(candidates[order].astype(np.int64), scores[order])

    def popular(
        self,
        masked: NDArray[np.int32],
        k: int,
        selection: Selection | None = None,
        *,
        in_training: bool = False,
    ) -> Ranking:
        """The most popular items: of late, if that is known (and wanted), then of the training
        part. The score is the number of interactions, the recent one if that is known. Items that
        came after the training have none there, the newest of them first."""
        order, shelf, (recent, numbers) = self._popular, self.shelf, self._recent
        if in_training:
            recent, numbers = recent[:0], numbers[:0]
        by_recent = len(recent) > 0
        if not shelf.plain or selection is not None:
            newer = np.arange(shelf.size, len(order), -1)
            order = np.concatenate([order, newer])
            flags = shelf.open if selection is None else selection.on(shelf)
            order, left = order[flags[order]], flags[recent]
            recent, numbers = recent[left], numbers[left]
        head = order[: k + len(masked) + len(recent)]
        scores = self._counts(head)
        if by_recent:
            head = np.concatenate([recent, head[~np.isin(head, recent)]])
            scores = np.zeros(len(head), np.float32)
            scores[: len(numbers)] = numbers
        left = ~np.isin(head, masked)
        return Ranking(head[left][:k], scores[left][:k], recent=by_recent)

    def similar(
        self,
        row: int,
        k: int,
        masked: NDArray[np.int32] = NO_ITEMS,
        selection: Selection | None = None,
    ) -> Ranking:
        """The items whose vectors point most nearly where this row's does, without itself; the
        score is the cosine."""
        shelf = self.shelf
        flags = (shelf.open if selection is None else selection.on(shelf)).copy()
        flags[masked] = flags[row] = False
        query = _unit(self.vectors(np.array([row]), shelf))[0]
        rows = self._around(query, k, flags)
        scores = (_unit(self.vectors(rows, shelf)) @ query).numpy()
        order = np.lexsort((rows, -scores))[:k]
        return Ranking(rows[order], scores[order])

    def _around(self, query_D: Tensor, k: int, flags: Flags) -> NDArray[np.int64]:
        """Rows with a flag, among which are the k nearest."""
        return np.flatnonzero(flags)

    def _counts(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        trained = rows <= len(self)
        return np.where(trained, self._popularity[np.where(trained, rows, 1) - 1], np.float32(0))

    def vectors(self, rows: NDArray[np.int64], shelf: CatalogueView | None = None) -> Tensor:
        """(len(rows), D) the rows' vectors, on the model's device."""
        shelf, embedding = shelf or self.shelf, self._embedding
        index = torch.from_numpy(rows).to(embedding.device)
        newer = index - len(embedding)
        if shelf.vectors is None or not bool((newer >= 0).any()):
            return embedding[index]
        trained = embedding[index.clamp(max=len(embedding) - 1)]
        return torch.where((newer >= 0)[:, None], shelf.vectors[newer.clamp(min=0)], trained)

    def show_recent(self, numbers: Sequence[tuple[int, float]]) -> None:
        """What is popular of late: items and their numbers, most first; none: not known."""
        items, counted = zip(*numbers, strict=True) if numbers else ((), ())
        self._recent = np.array(items, np.int64), np.array(counted, np.float32)


class IndexRetrieval(ExactRetrieval):
    """Top-K among the candidates of an index; for the few it can't serve, over the whole catalogue.

    Args:
        embedding, repeat_bias: as for ExactRetrieval.
        index: of rows 1 to V.
    """

    def __init__(
        self, embedding: Tensor, items: Items, index: ItemIndex, repeat_bias: float = 0.0
    ) -> None:
        super().__init__(embedding, items, repeat_bias)
        self._vectors = self._embedding.cpu()
        self._index = index
        self._most = min(MOST_CANDIDATES, len(self) // 4)
        self._is_masked = np.zeros(len(self) + 1, np.bool_)

    def top(
        self,
        query_BD: Tensor,
        masked: Sequence[NDArray[np.int32]],
        ks: Sequence[int],
        selections: Sequence[Selection | None] | None = None,
        had: Sequence[NDArray[np.int32]] | None = None,
        there: tuple[Tensor, Tensor] | None = None,
    ) -> list[Ranking]:
        query, shelf = query_BD.float().cpu(), self.shelf
        chosen = selections or [None] * len(ks)
        if had is not None and self.repeat_bias and any(map(len, had)):
            # No index knows where a bias puts an item: those are looked at one by one.
            apart = [np.concatenate(both) for both in zip(masked, had, strict=True)]
            return [
                _merged(
                    new, self._weighed(shelf, query[row], had[row], masked[row], chosen[row], k), k
                )
                for row, (new, k) in enumerate(
                    zip(self.top(query_BD, apart, ks, selections), ks, strict=True)
                )
            ]
        # What may be returned of the shelf; None: everything.
        everybodys = None if shelf.blocked is None else shelf.open
        flags = [everybodys if one is None else one.on(shelf) for one in chosen]
        found: dict[int, Ranking] = {}
        waiting: dict[int, list[int]] = defaultdict(list)
        for row, k in enumerate(ks):
            own = None if chosen[row] is None else flags[row]
            if own is not None and np.count_nonzero(own) <= self._most:
                few = np.flatnonzero(own)
                found[row] = self._best(shelf, query[row], few, masked[row], k)
            else:
                waiting[_power_of_two(max(LEAST_CANDIDATES, SURE_PART * k))].append(row)
        while waiting:
            count = min(waiting)
            rows = waiting.pop(count)
            if count > self._most:
                rows = sorted(sum(waiting.values(), rows))
                exact = self._top(
                    shelf,
                    query_BD[rows],
                    [masked[r] for r in rows],
                    [ks[r] for r in rows],
                    [chosen[r] for r in rows],
                )
                found.update(zip(rows, exact, strict=True))
                break
            items, scores, allowed = self._candidates(
                query[rows], [masked[row] for row in rows], [flags[row] for row in rows], count
            )
            near = allowed[:, : count // SURE_PART].sum(1)
            for place, row in enumerate(rows):
                if near[place] < ks[row]:
                    waiting[4 * count].append(row)
                    continue
                best = np.flatnonzero(allowed[place])[: ks[row]]
                ranking = Ranking(items[place, best], scores[place, best], indexed=True)
                if shelf.vectors is not None:
                    newer = np.arange(len(self) + 1, shelf.size + 1)
                    if (own := flags[row]) is not None:
                        newer = newer[own[newer]]
                    late = self._best(shelf, query[row], newer, masked[row], ks[row])
                    ranking = _merged(ranking, late, ks[row])
                found[row] = ranking
        return [found[row] for row in range(len(ks))]

    def _products(self, query_BD: Tensor) -> Tensor:
        if self._embedding.device.type != "cpu":
            return super()._products(query_BD)
        # Hardly ever used: not worth a copy of a large catalogue. Without one a BLAS takes for two
        # or three queries the time of six.
        query = query_BD.numpy()
        rows = query[:, None] if len(query) < APART_BELOW else query
        return torch.from_numpy(np.matmul(rows, self._vectors.numpy().T).reshape(len(query), -1))

    def _around(self, query_D: Tensor, k: int, flags: Flags) -> NDArray[np.int64]:
        # By product, not by cosine: the more are looked at, for their lengths differ.
        count = _power_of_two(max(16 * LEAST_CANDIDATES, 4 * SURE_PART * k))
        if count <= self._most:
            found = self._index.search(query_D[None].numpy(), count)[0] + 1
            found = found[flags[found]]
            if len(found) >= SURE_PART * k:
                newer = len(self) + 1 + np.flatnonzero(flags[len(self) + 1 :])
                return np.concatenate([found, newer])
        return super()._around(query_D, k, flags)

    def _best(
        self,
        shelf: CatalogueView,
        query_D: Tensor,
        rows: NDArray[np.int64],
        masked: NDArray[np.int32],
        k: int,
    ) -> Ranking:
        """The best k of these rows, each looked at."""
        rows = rows[~np.isin(rows, masked)]
        scores = (self.vectors(rows, shelf).float().cpu() @ query_D).numpy()
        order = np.lexsort((rows, -scores))[:k]
        return Ranking(rows[order], scores[order])

    def _weighed(
        self,
        shelf: CatalogueView,
        query_D: Tensor,
        had: NDArray[np.int32],
        masked: NDArray[np.int32],
        selection: Selection | None,
        k: int,
    ) -> Ranking:
        """The best of what the user has had."""
        rows = np.unique(had).astype(np.int64)
        rows = rows[(shelf.open if selection is None else selection.on(shelf))[rows]]
        best = self._best(shelf, query_D, rows, masked, k)
        return replace(best, scores=best.scores + np.float32(self.repeat_bias))

    def _candidates(
        self,
        query_BD: Tensor,
        masked: Sequence[NDArray[np.int32]],
        flags: Sequence[Flags | None],
        count: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """(B, count) items by their exact scores, those scores, and which may be returned."""
        items = self._index.search(query_BD.numpy(), count) + 1
        vectors = self._vectors[torch.from_numpy(items)]
        scores: NDArray[np.float32] = torch.bmm(vectors, query_BD[:, :, None])[:, :, 0].numpy()
        allowed = items > 0
        scores[~allowed] = -np.inf
        for row, mask in enumerate(masked):
            mask = mask[mask <= len(self)]  # the index has no newer ones
            self._is_masked[mask] = True
            allowed[row] &= ~self._is_masked[items[row]]
            self._is_masked[mask] = False
            open_rows = flags[row]
            if open_rows is not None:
                allowed[row] &= open_rows[items[row]]
        order = np.lexsort((items, -scores), axis=1)
        return (
            np.take_along_axis(items, order, 1),
            np.take_along_axis(scores, order, 1),
            np.take_along_axis(allowed, order, 1),
        )


def _merged(one: Ranking, other: Ranking, k: int) -> Ranking:
    items = np.concatenate([one.items, other.items])
    scores = np.concatenate([one.scores, other.scores])
    order = np.lexsort((items, -scores))[:k]
    return Ranking(items[order], scores[order], one.indexed)


def _unit(vectors_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_ND.float().cpu(), dim=1)


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
        from service.catalogue import item_index  # of an extra

        if size >= item_index.LEAST_ITEMS:
            vectors = weight.detach().float().cpu().numpy()[1:]
            index = item_index.open_index(folder, artefact.identity, vectors)
            return IndexRetrieval(weight, artefact.items, index, artefact.model.repeat_bias)
        logger.info("%d items are too few for an index: retrieval is exact", size)
    return ExactRetrieval(weight, artefact.items, artefact.model.repeat_bias)


def places(columns: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """(2, n) row and column of each."""
    sizes = [len(some) for some in columns]
    if not any(sizes):
        return np.empty((2, 0), np.int64)
    return np.stack([np.repeat(np.arange(len(columns)), sizes), np.concatenate(columns)])


def _on(
    device: torch.device,
    masked: Sequence[NDArray[np.int32]],
    had: Sequence[NDArray[np.int32]] | None,
) -> tuple[Tensor, Tensor]:
    both = places(masked), places(had or ())
    return torch.from_numpy(both[0]).to(device), torch.from_numpy(both[1]).to(device)


def _brought(values: Tensor, indices: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Both as arrays, in one transfer from a device."""
    if values.device.type == "cpu" or values.dtype != torch.float32:
        return values.cpu().numpy(), indices.cpu().numpy()
    both = torch.cat([values.view(torch.int32), indices.int()], 1).cpu().numpy()
    width = values.shape[1]
    return both[:, :width].copy().view(np.float32), both[:, width:].astype(np.int64)


def _power_of_two(least: int) -> int:
    """The next one, so that a wave has few different numbers of candidates."""
    return 1 << (least - 1).bit_length()

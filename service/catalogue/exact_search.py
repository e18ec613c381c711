"""The best items for a query, by one product with the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from service.catalogue import numba_top
from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView, Flags

FEW = 3
"""Queries up to which one product each is quicker than one of all: for that a BLAS first packs the
vectors for itself."""


def products(
    query_BD: NDArray[np.float32], components_DV: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(B, V) products on a CPU."""
    found_BV = np.empty((len(query_BD), components_DV.shape[1]), np.float32)
    if len(query_BD) > FEW:
        return np.matmul(query_BD, components_DV, out=found_BV)
    for query_D, found_V in zip(query_BD, found_BV, strict=True):
        np.matmul(query_D, components_DV, out=found_V)
    return found_BV


class ExactSearch:
    """Equal scores are in the order of their rows.

    Args:
        embedding: (V + 1, D), row 0 the padding's; with a column more, the items' biases.
        repeat_bias: added to the scores of items that the user has had.
        transposed: keep a copy for products on a CPU, which then take half of the time.
    """

    def __init__(self, embedding: Tensor, repeat_bias: float, *, transposed: bool) -> None:
        self._embedding, self.repeat_bias = embedding, repeat_bias
        self._components_DV: NDArray[np.float32] | None = None
        if transposed and embedding.device.type == "cpu":
            self._components_DV = np.ascontiguousarray(embedding.numpy().T)
        self._biased: tuple[CatalogueView, Tensor | None] | None = None

    def top(
        self,
        view: CatalogueView,
        query_BD: Tensor,
        asks: Sequence[Ask],
        there: Sequence[Tensor] | None = None,
    ) -> list[Ranking]:
        """The best items of each query, fewer than k where so many are not left.

        Args:
            there: `places(asks)`, where they are on the device already.
        """
        scores = self._scores(view, self.wide(query_BD), asks)
        ks = [ask.k for ask in asks]
        if there is None and scores.device.type == "cpu":
            hidden = [ask.hidden for ask in asks]
            seen = [ask.seen for ask in asks] if self.repeat_bias else None
            best = numba_top.top(scores.numpy(), hidden, seen, self.repeat_bias, ks)
            return [Ranking(*one) for one in best]
        scores[:, 0] = -torch.inf
        if there is None:
            there = [torch.from_numpy(own).to(scores.device) for own in self.places(asks)]
        hidden_at, seen_at = there
        if seen_at.shape[1]:
            at = seen_at[0], seen_at[1]
            scores[at] = scores[at] + self.repeat_bias  # once where one stands there twice
        if hidden_at.shape[1]:
            scores[hidden_at[0], hidden_at[1]] = -torch.inf
        widest = min(max(ks), scores.shape[1])
        values, indices = _brought(*scores.topk(widest, dim=1))
        if (values[:, 1:] == values[:, :-1]).any():
            order = np.lexsort((indices, -values), axis=1)
            values = np.take_along_axis(values, order, 1)
            indices = np.take_along_axis(indices, order, 1)
        counts = np.isfinite(values).sum(1).tolist()
        sizes = [min(k, count) for k, count in zip(ks, counts, strict=True)]
        return [Ranking(indices[i, :size], values[i, :size]) for i, size in enumerate(sizes)]

    def best(
        self, view: CatalogueView, query_D: Tensor, rows: NDArray[np.int64], ask: Ask
    ) -> Ranking:
        """The best of these rows."""
        rows = np.setdiff1d(rows, ask.hidden)
        scores = (self.vectors(view, rows) @ self.wide(query_D)).float().cpu().numpy()
        scores += np.float32(self.repeat_bias) * np.isin(rows, ask.seen)
        order = np.lexsort((rows, -scores))[: ask.k]
        return Ranking(rows[order], scores[order])

    def wide(self, query: Tensor) -> Tensor:
        """Queries (..., D) as wide as the vectors: a 1 goes with a bias."""
        missing = self._embedding.shape[1] - query.shape[-1]
        return pad(query, (0, missing), value=1.0) if missing else query

    def around(self, query_D: Tensor, k: int, flags: Flags) -> NDArray[np.int64]:
        """Rows with a flag, among which are the k nearest to a query of length 1."""
        return np.flatnonzero(flags)

    def vectors(self, view: CatalogueView, rows: NDArray[np.int64]) -> Tensor:
        """The rows' vectors, as wide as the embedding, on the model's device."""
        embedding = self._embedding
        index = torch.from_numpy(rows).to(embedding.device)
        newer = index - len(embedding)
        if view.vectors is None or not bool((newer >= 0).any()):
            return embedding[index]
        trained = embedding[index.clamp(max=len(embedding) - 1)]
        return torch.where((newer >= 0)[:, None], view.vectors[newer.clamp(min=0)], trained)

    def places(self, asks: Sequence[Ask]) -> list[NDArray[np.int64]]:
        """(2, n) rows and columns of hidden and of seen items among the scores of `top`."""
        seen = [ask.seen for ask in asks] if self.repeat_bias else []
        return [_places([ask.hidden for ask in asks]), _places(seen)]

    def _scores(self, view: CatalogueView, query_BD: Tensor, asks: Sequence[Ask]) -> Tensor:
        """(B, view.size + 1), -inf where an item is blocked or not among those selected; on a CPU
        without the newer rows, where all of these are noted items."""
        scores = self._products(query_BD)
        without_newer = view.noted_only and scores.device.type == "cpu"
        if view.vectors is not None and not without_newer:
            scores = torch.cat([scores, query_BD @ view.vectors.T], 1)
        width = scores.shape[1]
        if self._biased is None or self._biased[0] is not view:
            self._biased = view, _bias(view, width, scores.device)
        if (bias := self._biased[1]) is not None:
            scores += bias
        outside: dict[int, Tensor] = {}  # many ask for the same
        for place, ask in enumerate(asks):
            if (selection := ask.selection) is not None:
                if id(selection) not in outside:
                    out = torch.from_numpy(~selection.on(view)[:width])
                    outside[id(selection)] = out.to(scores.device)
                scores[place].masked_fill_(outside[id(selection)], -torch.inf)
        return scores

    def _products(self, query_BD: Tensor) -> Tensor:
        """(B, V + 1) of the queries and the vocabulary's vectors."""
        if self._components_DV is None:
            return query_BD @ self._embedding.T
        # For many, numpy's BLAS takes half of torch's time.
        return torch.from_numpy(products(query_BD.numpy(), self._components_DV))


def _bias(view: CatalogueView, width: int, device: torch.device) -> Tensor | None:
    """(width), -inf where an item is blocked; None: none is."""
    if view.blocked is None or not view.blocked[:width].any():
        return None
    bias = np.where(view.blocked[:width], np.float32(-np.inf), np.float32(0))
    return torch.from_numpy(bias).to(device)


def _places(columns: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    sizes = [len(some) for some in columns]
    if not any(sizes):
        return np.empty((2, 0), np.int64)
    return np.stack([np.repeat(np.arange(len(columns)), sizes), np.concatenate(columns)])


def _brought(values: Tensor, indices: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Both as arrays, in one transfer from a device."""
    if values.device.type == "cpu" or values.dtype != torch.float32:
        return values.cpu().numpy(), indices.cpu().numpy()
    both = torch.cat([values.view(torch.int32), indices.int()], 1).cpu().numpy()
    width = values.shape[1]
    return both[:, :width].copy().view(np.float32), both[:, width:].astype(np.int64)

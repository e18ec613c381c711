"""Exact retrieval against the definition, spelled out."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.artefact import Items
from service.retrieval import ExactRetrieval

torch.set_num_threads(1)


@st.composite
def requests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]], list[int]]:
    """Embeddings and queries of small whole numbers (so that many scores are equal), masks, ks."""
    size, width, batch = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    numbers = st.integers(-2, 2)

    def matrix(rows: int) -> np.ndarray:
        row = st.lists(numbers, min_size=width, max_size=width)
        return np.array(draw(st.lists(row, min_size=rows, max_size=rows)), np.float32)

    mask = st.lists(st.integers(1, size), max_size=2 * size)
    masks = draw(st.lists(mask, min_size=batch, max_size=batch))
    ks = draw(st.lists(st.integers(1, size + 3), min_size=batch, max_size=batch))
    return matrix(size + 1), matrix(batch), masks, ks


@given(requests())
def test_top_is_the_sorted_catalogue_without_the_masked(
    request: tuple[np.ndarray, np.ndarray, list[list[int]], list[int]],
) -> None:
    embedding, queries, masks, ks = request
    size = len(embedding) - 1
    items = Items([f"i{i}" for i in range(size)], np.zeros(size, np.int64))
    retrieval = ExactRetrieval(torch.from_numpy(embedding), items)
    found = retrieval.top(torch.from_numpy(queries), [np.array(m, np.int32) for m in masks], ks)
    for query, mask, k, ranking in zip(queries, masks, ks, found, strict=True):
        scores = {i: float(query @ embedding[i]) for i in range(1, size + 1) if i not in mask}
        best = sorted(scores.values(), reverse=True)[:k]
        assert ranking.scores.tolist() == best
        assert [scores[i] for i in ranking.items.tolist()] == best
        assert len(set(ranking.items.tolist())) == len(best)
        assert ranking.items.tolist() == sorted(ranking.items, key=lambda i: (-scores[i], i))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_popular_is_sorted_by_popularity_then_index(counts: list[int], data: st.DataObject) -> None:
    size = len(counts)
    mask = data.draw(st.lists(st.integers(1, size), max_size=2 * size))
    k = data.draw(st.integers(1, size + 3))
    items = Items([f"i{i}" for i in range(size)], np.array(counts))
    retrieval = ExactRetrieval(torch.zeros(size + 1, 2), items)
    ranking = retrieval.popular(np.array(mask, np.int32), k)
    left = [i for i in range(1, size + 1) if i not in mask]
    expected = sorted(left, key=lambda i: (-counts[i - 1], i))[:k]
    assert ranking.items.tolist() == expected
    assert ranking.scores.tolist() == [counts[i - 1] for i in expected]

"""Exact retrieval against the definition, spelled out."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.items import Items
from service.catalogue.ask import Ask
from service.catalogue.retrieval import Retrieval
from service.catalogue.view import CatalogueView

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


@given(requests(), st.integers(-3, 3), st.data())
def test_top_is_the_sorted_catalogue_without_the_masked(
    request: tuple[np.ndarray, np.ndarray, list[list[int]], list[int]],
    bias: int,
    data: st.DataObject,
) -> None:
    embedding, queries, masks, ks = request
    size = len(embedding) - 1
    of_one = st.lists(st.integers(1, size + 3), max_size=2 * size)
    had = data.draw(st.lists(of_one, min_size=len(ks), max_size=len(ks)))
    came_since = data.draw(st.lists(st.integers(size + 1, size + 10**6), max_size=3))
    items = Items([f"i{i}" for i in range(size)], np.zeros(size, np.int64))
    retrieval = Retrieval(torch.from_numpy(embedding), items, float(bias))
    asks = [
        Ask(k, np.array([*mask, *came_since], np.int32), np.array(own, np.int32))
        for k, mask, own in zip(ks, masks, had, strict=True)
    ]
    found = retrieval.answer(torch.from_numpy(queries), asks)
    for query, mask, own, k, ranking in zip(queries, masks, had, ks, found, strict=True):
        scores = {
            i: float(query @ embedding[i]) + bias * (i in own)
            for i in range(1, size + 1)
            if i not in mask
        }
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
    retrieval = Retrieval(torch.zeros(size + 1, 2), items)
    ask = Ask(k, np.array(mask, np.int32))
    (ranking,) = retrieval.answer(None, [ask])
    left = [i for i in range(1, size + 1) if i not in mask]
    expected = sorted(left, key=lambda i: (-counts[i - 1], i))[:k]
    assert ranking.items.tolist() == expected
    assert ranking.scores.tolist() == [counts[i - 1] for i in expected]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.booleans(), st.data())
def test_what_is_popular_of_late_comes_first(
    counts: list[int], blocks: bool, data: st.DataObject
) -> None:
    size = len(counts)
    rows = st.integers(1, size)
    mask = data.draw(st.lists(rows, max_size=2 * size))
    blocked = data.draw(st.sets(rows)) if blocks else set[int]()
    recent = data.draw(st.dictionaries(rows, st.integers(1, 9), min_size=1))
    k = data.draw(st.integers(1, size + 3))
    items = Items([f"i{i}" for i in range(size)], np.array(counts))
    retrieval = Retrieval(torch.zeros(size + 1, 2), items)
    if blocks:
        flags = np.zeros(size + 1, np.bool_)
        flags[list(blocked)] = True
        retrieval.view = CatalogueView(size, flags)
    retrieval.show_recent(sorted(recent.items(), key=lambda pair: -pair[1]))
    ask = Ask(k, np.array(mask, np.int32))
    (ranking,) = retrieval.answer(None, [ask])
    left = [i for i in range(1, size + 1) if i not in mask and i not in blocked]
    in_order = sorted(left, key=lambda i: -recent.get(i, 0))
    assert ranking.recent
    assert ranking.scores.tolist() == [recent.get(i, 0) for i in in_order][:k]
    assert len(set(ranking.items.tolist())) == len(ranking.items)
    assert [recent.get(i, 0) for i in ranking.items.tolist()] == ranking.scores.tolist()
    assert set(ranking.items.tolist()) <= set(left)
    others = [i for i in ranking.items.tolist() if i not in recent]
    assert others == sorted(others, key=lambda i: (-counts[i - 1], i))
    trained = retrieval.popular_in_training(ask)
    assert trained.items.tolist() == sorted(left, key=lambda i: (-counts[i - 1], i))[:k]
    (ranked,) = retrieval.answer(None, [Ask(size, candidates=np.array(left, np.int32))])
    assert ranked.scores.tolist() == [recent.get(i, 0) for i in in_order]
    retrieval.show_recent([])
    assert retrieval.answer(None, [ask])[0].items.tolist() == trained.items.tolist()


@given(requests(), st.data())
def test_similar_items_are_sorted_by_cosine(
    request: tuple[np.ndarray, np.ndarray, list[list[int]], list[int]], data: st.DataObject
) -> None:
    embedding, _, masks, ks = request
    size = len(embedding) - 1
    row = data.draw(st.integers(1, size))
    items = Items([f"i{i}" for i in range(size)], np.zeros(size, np.int64))
    retrieval = Retrieval(torch.from_numpy(embedding), items)
    found = retrieval.similar(row, f"i{row}", Ask(ks[0], np.array(masks[0], np.int32)))

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(one @ other) / lengths if lengths else 0.0

    left = {
        i: cosine(embedding[row], embedding[i])
        for i in range(1, size + 1)
        if i != row and i not in masks[0]
    }
    np.testing.assert_allclose(
        found.scores, sorted(left.values(), reverse=True)[: ks[0]], atol=1e-6
    )
    np.testing.assert_allclose([left[i] for i in found.items.tolist()], found.scores, atol=1e-6)
    assert len(set(found.items.tolist())) == len(found.items)

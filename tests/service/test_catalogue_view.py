"""Retrieval with rows after the vocabulary, rows that are blocked, and requests that may be given
only some: exact and by an index, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.items import Items
from service.catalogue.ask import Ask
from service.catalogue.choice import Choice
from service.catalogue.item_index import open_index
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.catalogue.view import CatalogueView, Flags, Selection
from tests.service.test_item_index import MODEL, SIZE, WIDTH, vectors

torch.set_num_threads(1)

NEWER = 50
ROWS = SIZE + NEWER


def drawn(draw: st.DrawFn, rows: int) -> Flags:
    return np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)


@pytest.mark.slow
@given(st.data())
def test_exact_is_the_definition(data: st.DataObject) -> None:
    """Vectors of small whole numbers, so that many scores are equal."""
    trained, newer = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 4))
    rows = trained + newer
    number = st.integers(-2, 2)
    matrix = st.lists(st.tuples(number, number), min_size=rows + 1, max_size=rows + 1)
    table = torch.tensor(data.draw(matrix), dtype=torch.float32)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=trained, max_size=trained))
    items = Items([f"i{i}" for i in range(trained)], np.array(counts))
    retrieval = Retrieval(table[: trained + 1], items)
    blocked = data.draw(st.none() | st.builds(lambda: drawn(data.draw, rows + 1)))
    retrieval.view = CatalogueView(rows, blocked, table[trained + 1 :] if newer else None)
    # A selection may be older than the view: newer rows are then not in it.
    selection = st.integers(1, rows + 1).map(lambda flags: Selection(drawn(data.draw, flags)))
    chosen = [data.draw(st.none() | selection) for _ in range(3)]
    masks = [np.array(data.draw(st.lists(st.integers(1, rows))), np.int32) for _ in chosen]
    ks = [data.draw(st.integers(1, rows + 2)) for _ in chosen]
    queries = torch.tensor([data.draw(st.tuples(number, number)) for _ in chosen]).float()
    asks = [
        Ask(k, mask, choice=None if own is None else Choice(own))
        for k, mask, own in zip(ks, masks, chosen, strict=True)
    ]
    found = retrieval.answer(queries, asks)
    for query, mask, ask, own, ranking in zip(queries, masks, asks, chosen, found, strict=True):
        left = [
            row
            for row in range(1, rows + 1)
            if not (blocked is not None and blocked[row])
            and row not in mask
            and (own is None or (row < len(own.allowed) and own.allowed[row]))
        ]
        score = {row: float(query @ table[row]) for row in left}
        best = sorted(left, key=lambda row: -score[row])[: ask.k]
        assert ranking.scores.tolist() == [score[row] for row in best]
        assert sorted(ranking.items, key=lambda row: (-score[row], row)) == ranking.items.tolist()
        (popular,) = retrieval.answer(None, [ask])
        count = {row: counts[row - 1] if row <= trained else 0 for row in left}
        old = sorted((row for row in left if row <= trained), key=lambda row: (-count[row], row))
        new = sorted((row for row in left if row > trained), reverse=True)
        assert popular.items.tolist() == (old + new)[: ask.k]
        assert popular.scores.tolist() == [count[row] for row in popular.items]
        np.testing.assert_array_equal(
            retrieval.vectors(ranking.items).numpy(), table[ranking.items].numpy()
        )


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.from_numpy(np.pad(vectors(ROWS), ((1, 0), (0, 0))))


@pytest.fixture(scope="module")
def indexed(table: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    items = Items([str(n) for n in range(SIZE)], np.zeros(SIZE, np.int64))
    own = np.ascontiguousarray(table[1 : SIZE + 1].numpy())
    index = open_index(tmp_path_factory.mktemp("index"), MODEL, own)
    return Retrieval(table[: SIZE + 1], items, index=index)


def expected(scores: np.ndarray, flags: Flags, mask: np.ndarray, k: int) -> list[int]:
    left = np.setdiff1d(np.flatnonzero(flags), mask)
    return [int(row) for row in left[np.argsort(-scores[left], kind="stable")][:k]]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.4, 1.0])
def test_an_index_finds_what_there_is(
    indexed: Retrieval, table: torch.Tensor, share: float
) -> None:
    draw = np.random.default_rng(0)
    blocked = draw.random(ROWS + 1) < 0.2
    indexed.view = CatalogueView(ROWS, blocked, table[SIZE + 1 :])
    queries = torch.from_numpy(vectors(40, seed=1))
    scores = (queries @ table.T).numpy()
    flags = [draw.random(ROWS + 1) < share for _ in queries]
    best_three = [expected(*pair, np.empty(0), 3) for pair in zip(scores, flags, strict=True)]
    masks = [np.array(rows, np.int32) for rows in best_three]
    for k in (10, 300):
        asks = [
            Ask(k, mask, choice=Choice(Selection(own)) if i % 2 else None)
            for i, (mask, own) in enumerate(zip(masks, flags, strict=True))
        ]
        found = indexed.answer(queries, asks)
        hits = wanted = 0
        for i, ranking in enumerate(found):
            given_flags = (flags[i] if i % 2 else np.ones(ROWS + 1, np.bool_)) & ~blocked
            given_flags[0] = False
            best = expected(scores[i], given_flags, masks[i], k)
            assert_sound(ranking, scores[i], given_flags, masks[i], len(best))
            if given_flags.sum() < 1500 or not ranking.indexed:
                np.testing.assert_allclose(ranking.scores, scores[i][best], atol=1e-4)
            hits += len(set(best) & set(ranking.items.tolist()))
            wanted += len(best)
        assert hits >= 0.97 * wanted
    asks = [Ask(10, mask) for mask in masks]
    assert any(ranking.indexed for ranking in indexed.answer(queries, asks))


def assert_sound(
    ranking: Ranking, scores: np.ndarray, flags: Flags, mask: np.ndarray, size: int
) -> None:
    items = ranking.items
    assert len(set(items.tolist())) == len(items) == size
    assert flags[items].all()
    assert not set(items.tolist()) & set(mask.tolist())
    np.testing.assert_allclose(ranking.scores, scores[items], atol=1e-4)
    assert (np.diff(ranking.scores) <= 0).all()


def test_the_best_of_an_index_may_be_newer_rows(indexed: Retrieval) -> None:
    query = torch.from_numpy(vectors(1, seed=2))
    indexed.view = CatalogueView(SIZE + 2, None, torch.cat([query * 9, -query]))
    (ranking,) = indexed.answer(query, [Ask(5)])
    assert ranking.items[0] == SIZE + 1
    assert SIZE + 2 not in ranking.items
    assert ranking.indexed
    assert query.shape[1] == WIDTH

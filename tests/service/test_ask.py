"""What requests ask, answered together and one by one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.items import Items
from service.catalogue.ask import Ask
from service.catalogue.choice import Choice
from service.catalogue.retrieval import Retrieval
from service.catalogue.view import Selection

SIZE = 12
ROWS = st.lists(st.integers(1, SIZE), max_size=SIZE).map(lambda rows: np.array(rows, np.int32))
SELECTIONS = st.lists(st.booleans(), min_size=SIZE + 1, max_size=SIZE + 1).map(
    lambda flags: Selection(np.array(flags, np.bool_))
)
CHOICES = st.builds(
    Choice,
    st.none() | SELECTIONS,
    st.none() | SELECTIONS,
    st.sampled_from([0.2, 1.0]),
    st.sampled_from([0.0, 0.5]),
)
ASKS = st.builds(Ask, st.integers(1, SIZE + 1), ROWS, ROWS) | st.builds(
    Ask, st.integers(1, SIZE + 1), ROWS, ROWS, st.none() | ROWS, st.none() | CHOICES
)


@given(st.lists(ASKS, min_size=1, max_size=12), st.booleans(), st.booleans(), st.integers(0, 99))
def test_asks_of_all_kinds_at_once_are_each_answered_as_alone(
    asks: list[Ask], known: bool, recent: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    # Whole numbers, so that no way of adding them up rounds.
    embedding = torch.from_numpy(draw.integers(-2, 3, (SIZE + 1, 4)).astype(np.float32))
    queries = torch.from_numpy(draw.integers(-2, 3, (len(asks), 4)).astype(np.float32))
    items = Items([f"i{n}" for n in range(SIZE)], draw.integers(0, 5, SIZE))
    retrieval = Retrieval(embedding, items, 1.0)
    retrieval.show_recent([(3, 2.0), (1, 1.0)] if recent else [])
    together = retrieval.answer(queries if known else None, asks)
    for place, (ask, ranking) in enumerate(zip(asks, together, strict=True)):
        (alone,) = retrieval.answer(queries[place : place + 1] if known else None, [ask])
        assert ranking.items.tolist() == alone.items.tolist()
        np.testing.assert_array_equal(ranking.scores, alone.scores)
        assert ranking.recent == alone.recent == (recent and not known)
        assert not set(ranking.items.tolist()) & set(ask.hidden.tolist())
        if ask.candidates is not None:
            left = set(ask.candidates.tolist()) - set(ask.hidden.tolist())
            assert len(ranking.items) == min(ask.k, len(left))
            assert set(ranking.items.tolist()) <= left


@given(ROWS, ROWS, ROWS, st.booleans())
def test_a_user_is_not_given_what_is_hidden_nor_seen_where_that_is_excluded(
    own: np.ndarray, seen: np.ndarray, hidden: np.ndarray, exclude_seen: bool
) -> None:
    ask = Ask(3, own).of_user(seen, hidden, ("b", "a"), 7, exclude_seen=exclude_seen)
    excluded = seen.tolist() if exclude_seen else []
    assert sorted(ask.hidden.tolist()) == sorted([*own.tolist(), *hidden.tolist(), *excluded])
    assert ask.seen.tolist() == ([] if exclude_seen else seen.tolist())
    assert (ask.recent, ask.at_ms) == (("b", "a"), 7)

"""Scores of few and many queries against the product in double precision."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from service.catalogue.exact_search import products


@given(st.integers(0, 9), st.integers(1, 40), st.sampled_from([1, 7, 1023, 2053]))
@example(1, 64, 12_102)
def test_scores_are_the_products(queries: int, depth: int, items: int) -> None:
    draw = np.random.default_rng([queries, depth, items])
    wide = draw.standard_normal((queries, 2 * depth)).astype(np.float32)
    vectors = draw.standard_normal((depth, items)).astype(np.float32)
    for some in (wide[:, :depth], wide[:, ::2]):
        scores = products(some, vectors)
        assert scores.dtype == np.float32
        expected = some.astype(np.float64) @ vectors.astype(np.float64)
        np.testing.assert_allclose(scores, expected, atol=1e-5 * depth)

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.training.logs import START_MS, chain_log, make_log
from training import cooccurrence
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, Protocol, build_dataset


def information(dataset: Dataset, window: int) -> torch.Tensor:
    """Positive pointwise mutual information, pair by pair: (V, V)."""
    n_items = dataset.n_items
    count = torch.zeros(n_items, n_items, dtype=torch.float64)
    for user, end in enumerate(dataset.train_ends):
        items = dataset.histories.items[dataset.histories.offsets[user] : end] - 1
        for i in range(len(items)):
            for j in range(len(items)):
                if 0 < abs(i - j) <= window:
                    count[items[i], items[j]] += 1
    total = count.sum(1)
    context = total**0.75 / (total**0.75).sum()
    return (count / (total[:, None] * context)).log().clamp(min=0).nan_to_num(nan=0.0)


def test_vectors_are_the_decomposition_of_the_information_of_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = build_dataset(chain_log(users=12, items=15), Protocol(1, 1))
    for window in (50, 3):
        monkeypatch.setattr(cooccurrence, "WINDOW", window)
        left, values, _ = torch.linalg.svd(information(dataset, window))
        expected = left * values.sqrt()
        width = dataset.n_items
        vectors, known = cooccurrence_vectors(dataset, width)
        assert known.all()
        expected = torch.nn.functional.normalize(expected, dim=1)
        # Columns are unique up to their sign only.
        assert torch.allclose((vectors @ vectors.T).double(), expected @ expected.T, atol=1e-3)


def test_pairs_of_validation_and_test_items_do_not_count() -> None:
    rows = [(user, item, START_MS + n) for user in "ab" for n, item in enumerate("wxyz")]
    dataset = build_dataset(make_log(rows), Protocol(1, 1))
    _, known = cooccurrence_vectors(dataset, 2)
    assert {dataset.item_ids[i] for i in np.flatnonzero(known)} == {"w", "x"}


def test_a_wide_model_of_few_items_and_one_that_never_meets_another() -> None:
    rows = [(user, "x", START_MS + n) for user in "ab" for n in range(4)]
    vectors, known = cooccurrence_vectors(build_dataset(make_log(rows), Protocol(1, 1)), 8)
    assert vectors.shape == (1, 8)
    assert bool(vectors.isfinite().all())
    assert not known.any()


def test_a_long_log_is_counted_in_a_smaller_window(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = build_dataset(chain_log(users=12, items=15), Protocol(1, 1))
    monkeypatch.setattr(cooccurrence, "WINDOW", 2)
    two, _ = cooccurrence_vectors(dataset, 8)
    monkeypatch.setattr(cooccurrence, "WINDOW", 50)
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 2 * len(dataset.histories.items) + 1)
    bounded, _ = cooccurrence_vectors(dataset, 8)
    assert torch.equal(two, bounded)
    assert math.isclose(float(two.norm(dim=1).max()), 1.0, rel_tol=1e-5)

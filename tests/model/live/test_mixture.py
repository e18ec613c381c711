"""A mixture is read as it was saved, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from model.live.mixture import MOST_BYTES, Mixture, MixtureError
from model.live.ranking import AGE, POPULAR, USUAL_ALONE
from tests.model.live.plain_ranking import random_mixture

Array = np.ndarray[Any, Any]


def saved() -> bytes:
    return random_mixture(np.random.default_rng(0)).to_bytes()


def test_a_mixture_is_read_as_it_was_saved() -> None:
    mixture = random_mixture(np.random.default_rng(0), hidden=7)
    again = Mixture.from_bytes(mixture.to_bytes())
    assert again.to_bytes() == mixture.to_bytes()
    for name, value in mixture.weights._asdict().items():
        np.testing.assert_array_equal(getattr(again.weights, name), value)


def test_one_that_was_saved_without_a_popularity_has_the_shortest() -> None:
    mixture = replace(random_mixture(np.random.default_rng(0)), alone=POPULAR)
    assert Mixture.from_bytes(mixture.to_bytes()).alone == POPULAR
    parts = load(mixture.to_bytes())
    del parts["alone"]
    assert Mixture.from_bytes(save(parts)).alone == USUAL_ALONE


def test_one_that_was_saved_without_lifts_nothing() -> None:
    mixture = replace(random_mixture(np.random.default_rng(0)), unseen=2.5)
    assert Mixture.from_bytes(mixture.to_bytes()).unseen == 2.5
    parts = load(mixture.to_bytes())
    del parts["unseen"]
    assert Mixture.from_bytes(save(parts)).unseen == 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("linear", lambda array: array[1:]),
        ("by_context", lambda array: array.T),
        ("hidden", lambda array: array[:1]),
        ("hidden", lambda array: array.astype(np.float64)),
        ("hidden_context", lambda array: array[:, 1:]),
        ("bias", lambda array: array * np.float32(np.nan)),
        ("out", lambda array: array * np.float32(np.inf)),
        ("out", lambda array: array[:0]),
        ("out", lambda array: np.array(1, np.float32)),
        ("out", lambda array: np.zeros(257, np.float32)),
        ("format", lambda array: array + 1),
        ("format", lambda array: np.zeros(2, np.int64)),
        ("format", lambda array: np.array(1)),
        ("alone", lambda array: np.full_like(array, POPULAR - 1)),
        ("alone", lambda array: np.full_like(array, AGE)),
        ("alone", lambda array: array.astype(np.float32)),
        ("alone", lambda array: np.zeros(0, np.int64)),
        ("unseen", lambda array: array * np.nan),
        ("unseen", lambda array: array + 101),
        ("unseen", lambda array: array[None]),
        ("unseen", lambda array: array[:0]),
        ("more", lambda array: np.zeros(1, np.float32)),
    ],
)
def test_a_mixture_that_does_not_fit_is_refused(
    name: str, change: Callable[[Array | None], Array]
) -> None:
    parts = load(saved())
    changed = {name: np.array(change(parts.get(name)), order="C")}
    with pytest.raises(MixtureError):
        Mixture.from_bytes(save(parts | changed))
    with pytest.raises(MixtureError):
        Mixture.from_bytes(save({other: parts[other] for other in parts if other != "bias"}))


@given(st.data())
def test_damaged_bytes_are_refused_or_a_mixture(data: st.DataObject) -> None:
    damaged = bytearray(saved())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 9, 0])) :]
    try:
        mixture = Mixture.from_bytes(bytes(damaged))
    except MixtureError:
        return
    assert all(np.isfinite(value).all() for value in mixture.weights)


def test_no_more_than_a_mixture_is_read() -> None:
    with pytest.raises(MixtureError, match="more than"):
        Mixture.from_bytes(bytes(MOST_BYTES + 1))

"""Mixtures that nobody has fitted."""

from __future__ import annotations

import numpy as np

from model.live.mixture import Mixture, Weights
from model.live.ranking import CONTEXT, FEATURES


def some_mixture(seed: int = 0, hidden: int = 3) -> Mixture:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Mixture(
        Weights(
            linear=drawn(len(FEATURES)),
            by_context=drawn(len(FEATURES), len(CONTEXT)),
            hidden=drawn(hidden, len(FEATURES)),
            hidden_context=drawn(hidden, len(CONTEXT)),
            bias=drawn(hidden),
            out=drawn(hidden),
        )
    )


def mixture_of(**slopes: float) -> Mixture:
    """Linear in the features named, with hidden units that bend it a little."""
    some = some_mixture().weights
    linear = np.array([slopes.get(name, 0) for name in FEATURES], np.float32)
    by_context = np.zeros_like(some.by_context)
    return Mixture(some._replace(linear=linear, by_context=by_context, out=some.out * 1e-3))


def same(one: Mixture, other: Mixture) -> bool:
    pairs = zip(one.weights, other.weights, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)

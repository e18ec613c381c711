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


def same(one: Mixture, other: Mixture) -> bool:
    pairs = zip(one.weights, other.weights, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)

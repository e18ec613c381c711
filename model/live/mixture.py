"""How the model's score and what is counted join: a small network over a candidate's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from model.live.ranking import AGE, CONTEXT, FEATURES, POPULAR, USUAL_ALONE

FORMAT = 1
MOST_HIDDEN = 256
MOST_BYTES = 1 << 20
MOST_BONUS = 100.0


class MixtureError(ValueError):
    """Bytes that are no mixture that this code can use."""


class Weights(NamedTuple):
    """linear (F), by_context (F, X), hidden (H, F), hidden_context (H, X), bias (H), out (H)."""

    linear: npt.NDArray[np.float32]
    by_context: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]
    hidden_context: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    out: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Mixture:
    """score = (linear + by_context c) f + out relu(hidden f + hidden_context c + bias), f a
    candidate's features and c the request's context (model.live.ranking).

    alone: the feature that is the score for somebody of whom nothing is known, a popularity.
    unseen: is added to the score of an item that has had no event.
    """

    weights: Weights
    alone: int = USUAL_ALONE
    unseen: float = 0.0

    def __post_init__(self) -> None:
        if type(self.alone) is not int or not POPULAR <= self.alone < AGE:
            raise MixtureError(f"feature {self.alone!r} is no popularity")
        if not abs(self.unseen) <= MOST_BONUS:
            raise MixtureError(f"{self.unseen!r} is not in -{MOST_BONUS:g}..{MOST_BONUS:g}")
        size = self.weights.out.size
        n_features, n_context = len(FEATURES), len(CONTEXT)
        shapes = {
            "linear": (n_features,),
            "by_context": (n_features, n_context),
            "hidden": (size, n_features),
            "hidden_context": (size, n_context),
            "bias": (size,),
            "out": (size,),
        }
        if not 1 <= size <= MOST_HIDDEN:
            raise MixtureError(f"it has {size} hidden units, not 1 to {MOST_HIDDEN}")
        for name, value in self.weights._asdict().items():
            if value.shape != shapes[name] or value.dtype != np.float32:
                raise MixtureError(f"{name} is not float32 of shape {shapes[name]}")
            if not np.isfinite(value).all():
                raise MixtureError(f"{name} is not finite")

    def scores(
        self, features: npt.NDArray[np.float32], context: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """(C) of candidates with these features (F, C), in a request of this context (X); without
        what is added for those that have had no event."""
        own = self.weights
        slopes = own.linear + own.by_context @ context
        bias = own.hidden_context @ context + own.bias
        hidden = np.maximum(own.hidden @ features + bias[:, None], 0)
        scores: npt.NDArray[np.float32] = slopes @ features + own.out @ hidden
        return scores

    def to_bytes(self) -> bytes:
        parts = {name: np.ascontiguousarray(v) for name, v in self.weights._asdict().items()}
        parts |= {"alone": np.array([self.alone]), "unseen": np.array([self.unseen])}
        return save(parts | {"format": np.array([FORMAT])})

    @classmethod
    def from_bytes(cls, data: bytes) -> Mixture:
        """What `to_bytes` gave. Raises MixtureError."""
        if len(data) > MOST_BYTES:
            raise MixtureError(f"it has more than {MOST_BYTES} bytes")
        try:
            parts = load(data)
            (found,) = parts.pop("format").tolist()
            if found != FORMAT:
                raise MixtureError(f"it has format {found}, not {FORMAT}")
            (alone,) = parts.pop("alone", np.array([USUAL_ALONE])).tolist()
            (unseen,) = parts.pop("unseen", np.zeros(1)).tolist()
            return cls(Weights(**parts), alone, unseen)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, MixtureError):
                raise
            raise MixtureError(f"it is damaged: {error}") from None


UNFITTED = Mixture(
    Weights(
        np.zeros(len(FEATURES), np.float32),
        np.zeros((len(FEATURES), len(CONTEXT)), np.float32),
        np.zeros((1, len(FEATURES)), np.float32),
        np.zeros((1, len(CONTEXT)), np.float32),
        np.zeros(1, np.float32),
        np.zeros(1, np.float32),
    )
)
"""All candidates are alike by it."""

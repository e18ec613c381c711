"""The architecture of one model: everything that decides its shape and its arithmetic."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from model.strict_json import is_number, shown

TimePath = Literal["causal", "sequence", "none"]
GapMix = Literal["factor", "product", "none"]
Activation = Literal["hardswish", "silu"]
TimeUse = Literal["none", "optional", "required"]
"""Whether a model reads the times of interactions, and whether it needs every one."""
SIZES = (
    "n_items", "d_model", "n_layers", "expand", "head_dim", "d_state", "d_conv", "n_groups",
    "max_len",
)  # fmt: skip
MOST_ITEMS = 2**31 - 1
MOST_LAYERS, MOST_WIDE = 256, 2**16
"""Far above what is of use: a model that asks for more has not been trained."""


class ConfigError(ValueError):
    """A model configuration that can't be built; the message names the field and the fix."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a TiM4Rec model.

    Attributes:
        n_items: V, the size of the vocabulary; item indices are 1..V, 0 is padding.
        d_model, n_layers, expand, head_dim, d_state, d_conv: D, layers, E/D, P, N, K.
        n_groups: G, of B and C as in Mamba-2; projections and norms are as many side by side, so
            the groups are members of an ensemble, of width D/G, that meet in the score only: theirs
            add up.
        ffn: whether each block is followed by the feed-forward layer.
        activation: used in the convolution, the feed-forward layer and the sequence time path.
        dropout: probability, at the embedding, each block's and each feed-forward's output.
        norm_eps: of every LayerNorm but the feed-forward's, which has `ffn_norm_eps`.
        time: `causal` is pointwise in time and can be stepped; `sequence` is the paper's path,
            exact to the official code, and needs the whole window; `none` is SSD without time.
        gap_embedding: (causal) adds an embedding of the gap to the item's.
        gap_mix: (causal) how the gap changes the step size: `factor` multiplies it by
            exp(c tanh f(gap)) after the softplus, `product` by 1 + f(gap) before it (the
            paper's place), `none` leaves it.
        request_time: (causal) the gap between the last interaction and the request scales and
            shifts the read-out.
        gap_range_s, request_range_s: smallest and largest positive gap seen in training, in
            seconds; a gap outside is treated as the nearest one inside.
        max_len: (sequence) the window; the official MAX_ITEM_LIST_LENGTH.
        p2p_residual, time_dropout: (sequence) the official options of those names.
    """

    n_items: int
    d_model: int = 64
    n_layers: int = 2
    expand: int = 2
    head_dim: int = 32
    d_state: int = 32
    d_conv: int = 4
    n_groups: int = 1
    ffn: bool = True
    activation: Activation = "hardswish"
    dropout: float = 0.2
    norm_eps: float = 1e-5
    ffn_norm_eps: float = 1e-5
    time: TimePath = "causal"
    gap_embedding: bool = True
    gap_mix: GapMix = "factor"
    request_time: bool = True
    gap_range_s: tuple[float, float] = (1.0, 2.0**30)
    request_range_s: tuple[float, float] = (1.0, 2.0**30)
    max_len: int = 50
    p2p_residual: bool = False
    time_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            least = 2 if name == "d_conv" else 1
            most = {"n_items": MOST_ITEMS, "n_layers": MOST_LAYERS}.get(name, MOST_WIDE)
            if not least <= size <= most:
                bound = f"at least {least}" if size < least else f"at most {most:,}"
                raise ConfigError(f"{name} must be {bound}, not {reprlib.repr(size)}")
        for name in ("dropout", "time_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        for name in ("norm_eps", "ffn_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.d_model % self.n_groups:
            raise ConfigError(f"n_groups {self.n_groups} must divide d_model = {self.d_model}")
        if self.d_inner // self.n_groups % self.head_dim:
            raise ConfigError(
                f"head_dim {self.head_dim} must divide expand * d_model / n_groups = "
                f"{self.d_inner // self.n_groups}"
            )
        if self.n_groups > 1 and self.time == "sequence":
            raise ConfigError("n_groups must be 1 with time=sequence")
        for name, choices in (("time", TimePath), ("gap_mix", GapMix), ("activation", Activation)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name} must be one of {', '.join(get_args(choices))}, "
                    f"not {reprlib.repr(getattr(self, name))}"
                )
        for name in ("gap_range_s", "request_range_s"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high < math.inf:
                raise ConfigError(f"{name} must be 0 < low <= high, not ({low}, {high})")

    @property
    def d_inner(self) -> int:
        """E."""
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        """H."""
        return self.d_inner // self.head_dim

    @property
    def d_xbc(self) -> int:
        """Channels that go through the convolution, group by group: E + 2GN."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    @property
    def uses_request_time(self) -> bool:
        return self.time == "causal" and self.request_time

    @property
    def time_use(self) -> TimeUse:
        uses: dict[TimePath, TimeUse] = {"causal": "optional", "sequence": "required"}
        return uses.get(self.time, "none")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> ModelConfig:
        """Of JSON values. Raises ConfigError for an unknown or missing field, or another type."""
        if not isinstance(values, dict):
            raise ConfigError(f"it must be an object, not {reprlib.repr(values)}")
        known = {f.name: f.type for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"unknown field {', '.join(map(shown, unknown[:3]))}")
        for name, value in values.items():
            fits, wanted = _TYPES.get(str(known[name]), _TYPES["str"])
            if not fits(value):
                raise ConfigError(f"{name} must be {wanted}, not {reprlib.repr(value)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(str(error)) from None


def _is_range(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (is_number, "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a word"),
    "tuple[float, float]": (_is_range, "two numbers"),
}
"""What a JSON value of a field must be, by the field's type; any other is one of a few words."""

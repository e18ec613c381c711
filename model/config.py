"""The architecture of one model: everything that decides its shape and its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from model.tim4rec import TiM4Rec

TimePath = Literal["causal", "sequence", "none"]
GapMix = Literal["factor", "product", "none"]
Activation = Literal["hardswish", "silu"]
TimeUse = Literal["none", "optional", "required"]
"""Whether a model reads the times of interactions, and whether it needs every one."""


class ConfigError(ValueError):
    """A model configuration that can't be built; the message names the field and the fix."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a TiM4Rec model.

    Attributes:
        n_items: V, the size of the vocabulary; item indices are 1..V, 0 is padding.
        d_model, n_layers, expand, head_dim, d_state, d_conv: D, layers, E/D, P, N, K.
        n_groups: G, of B and C as in Mamba-2; projections and norms are as many side by side, so
            the groups are towers of width D/G that meet in the score only: theirs add up.
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
        for name in (
            "n_items", "d_model", "n_layers", "expand", "head_dim", "d_state", "n_groups",
            "max_len",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_conv < 2:
            raise ConfigError(f"d_conv must be at least 2, not {self.d_conv}")
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
                    f"not {getattr(self, name)!r}"
                )
        for name in ("gap_range_s", "request_range_s"):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (float(low), float(high)))
            if not 0 < low <= high:
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

    def build(self) -> TiM4Rec:
        """The model with fresh weights, drawn from torch's default generator."""
        from model.tim4rec import TiM4Rec  # which needs this module

        return TiM4Rec(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Raises ConfigError for an unknown or missing field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown field {', '.join(unknown)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(str(error)) from None

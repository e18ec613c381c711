"""What the baselines share: their configuration, and asking for the item after a history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from model import State
from model.config import ConfigError, TimeUse
from model.recommender import Recommender
from training.dataset import Dataset


@dataclass(frozen=True)
class BaselineConfig(ABC):
    """Architecture of a baseline.

    n_items: V; d_model, n_layers: D and the number of blocks; dropout: probability, wherever the
    model has it; max_len: how many of the latest interactions are read.
    """

    n_items: int
    d_model: int = 64
    n_layers: int = 2
    dropout: float = 0.2
    max_len: int = 200

    time_use: ClassVar[TimeUse] = "none"
    uses_request_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "dropout":
                if not 0 <= value < 1:
                    raise ConfigError(f"dropout must be in 0..1, not {value}")
            elif value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        """The architecture for this data."""
        return cls(n_items=dataset.n_items, **options)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @abstractmethod
    def build(self) -> Baseline:
        """The model with fresh weights, drawn from torch's default generator."""


class Baseline(Recommender):
    """A causal model without a state to go on from: a query is computed from its window.

    A subclass has `config`, `item_embedding` and `outputs`.
    """

    config: BaselineConfig

    @abstractmethod
    def outputs(self, items_BL: Tensor, times_BL: Tensor) -> Tensor:
        """The query at every position, (B, L, D)."""

    @property
    def causal(self) -> bool:
        return True

    @property
    def window(self) -> int:
        return self.config.max_len

    def forward(
        self,
        items_BL: Tensor,
        times_BL: Tensor,
        request_times_BL: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """As `outputs`. Raises ConfigError where a window is to go on from a state."""
        if state is not None:
            raise ConfigError("training.context must be 0: this model has no state to go on from")
        return self.outputs(items_BL, times_BL)

    def new_state(self, batch: int, device: torch.device | str | None = None) -> State:
        width = self.item_embedding.embedding_dim
        return State({"query": torch.zeros(batch, width, device=device or self.device)})

    def prefill(self, items_BL: Tensor, times_BL: Tensor, lengths_B: Tensor, state: State) -> State:
        """The query after each row's first `lengths_B` interactions; `state` must be new."""
        width = min(self.window, items_BL.shape[1])
        last = lengths_B.clamp(max=width)
        place = torch.arange(width, device=lengths_B.device) + (lengths_B - last)[:, None]
        queries = self.outputs(items_BL.gather(1, place), times_BL.gather(1, place))
        row = torch.arange(len(queries), device=queries.device)
        found = queries[row, (last - 1).clamp(min=0)]
        return State({"query": torch.where(lengths_B[:, None] > 0, found, state["query"])})

    def step(self, items_B: Tensor, times_B: Tensor, state: State) -> State:
        raise NotImplementedError(f"{type(self).__name__} is evaluated in parallel mode only")

    def query(self, state: State, request_times_B: Tensor | None = None) -> Tensor:
        return state["query"]

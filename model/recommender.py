"""What training and evaluation use of a model, and of the configuration that it is built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from model.config import TimeUse
from model.content import Content
from model.gaps import UNKNOWN_TIME
from model.scoring import Scoring
from model.state import State

PREFILL_CHUNK = 512
"""Interactions of a user in one parallel pass, which bounds its memory."""


class Recommender(nn.Module, ABC):
    """A model of what follows a history, scored against a table of V' items, of which the first V
    are its input.

    Items are int64 in 1..V, 0 pads; times int64 milliseconds, UNKNOWN_TIME where not known;
    batches are padded on the right.
    """

    config: Architecture
    item_embedding: nn.Embedding
    """(V+1, D), as wide as a query."""
    repeat_bias: float = 0.0
    """To be added to the score of an item that the user has had, where such items are ranked."""
    scoring: Scoring | None = None
    """What queries are scored against; None: the rows of `item_embedding`."""
    content: Content | None = None
    """What items that it was not trained on get their vectors by."""

    @property
    def device(self) -> torch.device:
        return self.item_embedding.weight.device

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on later interactions, so that all of a window are trained."""

    @property
    @abstractmethod
    def window(self) -> int | None:
        """The number of latest interactions that a query depends on; None: on all."""

    @abstractmethod
    def forward(
        self,
        items_BL: Tensor,
        times_BL: Tensor,
        request_times_BL: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        """The query at every position, (B, L, D); only where the model is `causal`."""

    @abstractmethod
    def new_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """States of `batch` users without a history."""

    @abstractmethod
    def prefill(self, items_BL: Tensor, times_BL: Tensor, lengths_B: Tensor, state: State) -> State:
        """The states after each row's first `lengths_B` interactions."""

    def chunked_prefill(
        self, histories: Sequence[Sequence[tuple[int, int]]], state: State
    ) -> State:
        """`prefill` of histories of any length, each of items with their times: so many
        interactions in one pass."""
        for start in range(0, max(map(len, histories)), PREFILL_CHUNK):
            chunks = [history[start : start + PREFILL_CHUNK] for history in histories]
            state = self.prefill(*_padded(chunks, self.device), state)
        return state

    @abstractmethod
    def step(self, items_B: Tensor, times_B: Tensor, state: State) -> State:
        """The states after one more interaction each."""

    @abstractmethod
    def query(self, state: State, request_times_B: Tensor | None = None) -> Tensor:
        """The query (B, D) of users whose history is not empty, asked for at those times."""

    @property
    def scoring_vectors(self) -> Tensor:
        """(V'+1, D)"""
        return self.item_embedding.weight if self.scoring is None else self.scoring.vectors

    @property
    def item_bias(self) -> Tensor | None:
        """(V'+1), added to the items' scores; None: nothing is."""
        return None if self.scoring is None else self.scoring.bias

    @property
    def n_scored(self) -> int:
        """V', the items that it scores."""
        return len(self.scoring_vectors) - 1

    def scores(self, query: Tensor) -> Tensor:
        """Scores (..., V'+1) of all items for queries (..., D); the padding's is -inf."""
        scores = query @ self.scoring_vectors.T
        if self.item_bias is not None:
            scores += self.item_bias
        scores[..., 0] = -torch.inf
        return scores


def _padded(
    histories: Sequence[Sequence[tuple[int, int]]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Items and times (B, L), and lengths (B)."""
    lengths = [len(history) for history in histories]
    items = np.zeros((len(histories), max(lengths)), np.int64)
    times = np.full_like(items, UNKNOWN_TIME)
    for i, history in enumerate(histories):
        if history:
            items[i, : len(history)], times[i, : len(history)] = np.array(history, np.int64).T
    return (
        torch.from_numpy(items).to(device),
        torch.from_numpy(times).to(device),
        torch.tensor(lengths, device=device),
    )


class Architecture(Protocol):
    """Everything that decides a model's shape and arithmetic."""

    @property
    def n_items(self) -> int: ...

    @property
    def max_len(self) -> int:
        """The window of a model that has one."""

    @property
    def time_use(self) -> TimeUse: ...

    @property
    def uses_request_time(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]: ...

"""What a model's queries are scored against, where that is not its table of input vectors.

A state depends on input vectors, a score on these too: they can be trained anew, and items can be
added to them, while every state stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.items import Items


@dataclass(frozen=True, eq=False)
class Scoring:
    """A score is query · vector + bias.

    Attributes:
        items: V', the first V of them those that the model knows as input, in its order; events
            of the others move no state.
        vectors: (V' + 1, D) float32, row 0 the padding's.
        bias: (V' + 1) float32.
        n_new: so many of the last have vectors of what they are, as new items of a catalogue have;
            in no file.
    """

    items: Items
    vectors: Tensor
    bias: Tensor
    n_new: int = 0

    def __post_init__(self) -> None:
        rows = len(self.items) + 1
        if self.vectors.dim() != 2 or len(self.vectors) != rows or self.bias.shape != (rows,):
            raise ValueError(
                f"scoring: vectors {list(self.vectors.shape)} and bias {list(self.bias.shape)} "
                f"must have {rows} rows, one an item and the padding's"
            )

    def to(self, device: torch.device | str) -> Scoring:
        """The same on a device."""
        return replace(self, vectors=self.vectors.to(device), bias=self.bias.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """By their names in a file."""
        return {"bias": self.bias, "vectors": self.vectors}

"""Negatives of the sampled softmax: items drawn once for all targets of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from training.dataset import Int64s


class NegativeSampler:
    """Draws items in 1..V, each with a probability q proportional to (popularity + 1) ** power.

    Args:
        popularity: (V), index i is item i + 1.
        draws: how often to draw, with replacement; an item counts once however often it comes.
        power: 0 draws uniformly, 1 by popularity.
    """

    def __init__(self, popularity: Int64s, draws: int, power: float) -> None:
        weight = (torch.from_numpy(popularity).double() + 1) ** power
        q = weight / weight.sum()
        self.draws = draws
        self.cumulative = q.cumsum(0)
        # Of being among the draws at all: 1 - (1 - q) ** draws.
        self.log_inclusion = (-torch.expm1(draws * torch.log1p(-q))).log().float()

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Distinct items (S) in rising order, and the log of each one's chance to be drawn (S)."""
        points = torch.rand(self.draws, generator=generator, dtype=torch.float64)
        places = torch.searchsorted(self.cumulative, points * self.cumulative[-1], right=True)
        places = torch.unique(places.clamp(max=len(self.cumulative) - 1))
        return places + 1, self.log_inclusion[places]

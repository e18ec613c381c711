"""TiSASRec (Li et al., WSDM 2020, doi 10.1145/3336191.3371786), from its equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.baselines.baseline import Baseline, BaselineConfig
from model import UNKNOWN_TIME
from model.config import ConfigError, TimeUse

_NO_GAP = torch.iinfo(torch.int64).max


def intervals(times_BL: Tensor, most: int) -> Tensor:
    """Personalised intervals from each position i to each earlier one j, (B, L, L) int64.

    floor((t_i - t_j) / g_i), at most `most`; g_i is the smallest gap above 0 between neighbours
    up to i, and all are 0 where there is none. Those to later positions mean nothing.
    """
    gaps = times_BL.diff(dim=1, prepend=times_BL[:, :1])
    smallest = torch.where(gaps > 0, gaps, _NO_GAP).cummin(1).values
    apart = times_BL[:, :, None] - times_BL[:, None]
    return (apart // smallest[..., None]).clamp(0, most)


class TimeAwareAttention(nn.Module):
    """Causal attention with positions and intervals in keys and values, one head.

    e_ij = q_i (k_j + p^k_j + r^k_ij) / sqrt(D), z_i = sum_j softmax(e)_ij (v_j + p^v_j + r^v_ij).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BLD: Tensor,
        positions: tuple[Tensor, Tensor],
        apart: tuple[Tensor, Tensor],
        r_BLL: Tensor,
    ) -> Tensor:
        """
        Args:
            positions: p^k and p^v, (L, D); apart: r^k and r^v, a row an interval, (R, D).
            r_BLL: the interval's row from each position to each other.
        """
        length, width = x_BLD.shape[1:]
        query = self.query(x_BLD) * width**-0.5
        # No (B, L, L, D): a query meets every interval's row once, and its own are picked; a
        # position's weights are summed by interval before they meet the rows.
        scores = query @ (self.key(x_BLD) + positions[0]).transpose(1, 2)
        scores = scores + (query @ apart[0].T).gather(2, r_BLL)
        later = torch.ones(length, length, dtype=torch.bool, device=x_BLD.device).triu(1)
        weights = self.dropout(scores.masked_fill(later, -torch.inf).softmax(2))
        by_interval = weights.new_zeros(*weights.shape[:2], len(apart[1]))
        by_interval = by_interval.scatter_add(2, r_BLL, weights)
        out: Tensor = weights @ (self.value(x_BLD) + positions[1]) + by_interval @ apart[1]
        return out


class Block(nn.Module):
    """Attention, then a feed-forward layer of width D; each x + dropout(f(LayerNorm(x)))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.attention = TimeAwareAttention(width, dropout)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-8)
        self.ffn = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BLD: Tensor,
        positions: tuple[Tensor, Tensor],
        apart: tuple[Tensor, Tensor],
        r_BLL: Tensor,
    ) -> Tensor:
        found = self.attention(self.attention_norm(x_BLD), positions, apart, r_BLL)
        x = x_BLD + self.dropout(found)
        out: Tensor = x + self.dropout(self.ffn(self.ffn_norm(x)))
        return out


@dataclass(frozen=True)
class TiSASRecConfig(BaselineConfig):
    """Architecture of TiSASRec; max_interval: k, where personalised intervals are clipped."""

    max_interval: int = 256

    time_use: ClassVar[TimeUse] = "required"

    def build(self) -> TiSASRec:
        return TiSASRec(self)


class TiSASRec(Baseline):
    """Self-attention that knows how far apart two interactions are, in the user's own measure.

    As published: 2 blocks of one head, interval and position tables shared by the blocks, item
    embeddings times sqrt(D). Not as published: cross-entropy over the catalogue for a binary one
    with a sampled negative, and so no L2 penalty on the tables; width 64 as every row, not 50; the
    smallest gap is the one up to a position within its window, not the user's of all time, which
    would tell of the future; positions count from the window's beginning; dropout of the interval
    tables' entries, not of each pair's copy.
    """

    config: TiSASRecConfig

    def __init__(self, config: TiSASRecConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.item_embedding = nn.Embedding(config.n_items + 1, d, padding_idx=0)
        self.position_tables = nn.Parameter(torch.empty(2, config.max_len, d))
        self.interval_tables = nn.Parameter(torch.empty(2, config.max_interval + 1, d))
        for table in (self.item_embedding.weight, self.position_tables, self.interval_tables):
            nn.init.normal_(table, std=0.02)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(d, config.dropout) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d, eps=1e-8)

    def outputs(self, items_BL: Tensor, times_BL: Tensor) -> Tensor:
        """As `Baseline.outputs`, L at most `max_len`. Raises ConfigError for an unknown time."""
        length = items_BL.shape[1]
        if ((items_BL > 0) & (times_BL == UNKNOWN_TIME)).any():
            raise ConfigError("training.time_masking must be 0: TiSASRec needs every time")
        # Padding is at the row's last time: from UNKNOWN_TIME a difference would overflow.
        r = intervals(times_BL.cummax(1).values, self.config.max_interval)
        key, value = self.dropout(self.position_tables[:, :length]).unbind(0)
        apart = self.dropout(self.interval_tables).unbind(0)
        x = self.dropout(self.item_embedding(items_BL) * self.config.d_model**0.5)
        for block in self.blocks:
            x = block(x, (key, value), apart, r)
        out: Tensor = self.norm(x)
        return out

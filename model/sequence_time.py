"""The paper's time path: differences of timestamps mixed along the whole window.

Every operation here looks at all L positions, the padding included, so its result at one
position depends on later ones: exact to the official code, and impossible to step.
Source: TiM4Rec, arXiv 2409.16182, section 4.2, as the official implementation computes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.convolution import CausalConv
from model.layers import activation


def time_differences(timestamps_BL: Tensor) -> Tensor:
    """Differences of neighbouring timestamps in seconds, the first one 0: (B, L) float64."""
    return F.pad(timestamps_BL.double().diff(dim=1), (1, 0))


class TimeEncoder(nn.Module):
    """Dropout, then LayerNorm over the L positions, of the differences."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.time_dropout)
        self.norm = nn.LayerNorm(config.max_len, eps=config.norm_eps)

    def forward(self, differences_BL: Tensor) -> Tensor:
        out: Tensor = self.norm(self.dropout(differences_BL))
        return out


class TimeMixer(nn.Module):
    """One layer's part of the path: the factor g of its step size, and the next layer's input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        length, heads = config.max_len, config.n_heads
        self.dropout = nn.Dropout(config.time_dropout)
        self.scale_in = nn.Linear(length, length)
        self.scale_out = nn.Linear(length, length)
        self.conv_1 = CausalConv(heads, config.d_conv)
        self.conv_2 = CausalConv(heads, config.d_conv)
        self.gate = nn.Linear(length, length if config.p2p_residual else 1)
        self.norm = nn.LayerNorm(length, eps=config.norm_eps)
        self.activation = activation(config.activation)

    def forward(self, d_BHL: Tensor) -> tuple[Tensor, Tensor]:
        """Returns g (B, L, H) and the next layer's d (B, H, L)."""
        u = d_BHL * self.scale_out(F.silu(self.scale_in(self.dropout(d_BHL))))
        g = self.activation(self.conv_1(u.transpose(1, 2)))
        g = self.activation(self.conv_2(g))
        gate = torch.sigmoid(self.gate(d_BHL))
        return g, self.norm(gate * d_BHL + (1 - gate) * g.transpose(1, 2))

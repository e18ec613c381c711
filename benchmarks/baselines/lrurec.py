"""LRURec (Yue et al., WSDM 2024, arXiv 2310.02367), from its equations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.baseline import Baseline, BaselineConfig
from benchmarks.baselines.feed_forward import FeedForward


def recurrence(inputs_BLH: Tensor, decay_H: Tensor) -> Tensor:
    """h_t = decay h_{t-1} + input_t from h_0 = 0, complex, (B, L, H), in log2 L parallel steps.

    The paper's recursive parallelisation: the states of neighbouring spans, each computed as if
    nothing came before it, become those of one span of twice the length by adding to the second
    half what the first half's last state has decayed to.
    """
    batch, length, channels = inputs_BLH.shape
    span, powers = 1, decay_H[None]  # decay ** 1 to decay ** span
    h = F.pad(inputs_BLH, (0, 0, 0, (1 << (length - 1).bit_length()) - length))
    while span < length:
        first, second = h.view(batch, -1, 2, span, channels).unbind(2)
        h = torch.stack([first, second + powers * first[:, :, -1:]], 2).flatten(1, 3)
        powers = torch.cat([powers, powers * powers[-1]])
        span *= 2
    return h[:, :length]


class LinearRecurrentUnit(nn.Module):
    """LayerNorm(x + Re(C h)), h_t = lambda h_{t-1} + gamma (B x_t), of H = 2D complex channels.

    lambda = exp(-exp(nu) + i exp(theta)), so |lambda| < 1 whatever is learned.
    """

    MIN_RADIUS, MAX_RADIUS = 0.8, 0.99

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        channels = 2 * width
        low, high = self.MIN_RADIUS**2, self.MAX_RADIUS**2
        squared = torch.rand(channels) * (high - low) + low  # of |lambda|: uniform in the ring
        self.nu_log = nn.Parameter((-0.5 * squared.log()).log())
        self.theta_log = nn.Parameter((2 * math.pi * (1 - torch.rand(channels))).log())
        self.gamma_log = nn.Parameter(0.5 * (1 - squared).log())
        # Complex matrices as their real and imaginary parts: Re(C h) is a real product.
        self.project_in = nn.Linear(width, 2 * channels)
        self.project_out = nn.Linear(2 * channels, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """lambda (H) complex and gamma (H)."""
        decay = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))
        return decay, self.gamma_log.exp()

    def inputs(self, x: Tensor) -> Tensor:
        """gamma (B x), (..., D) to (..., H) complex."""
        _, gamma = self.coefficients()
        real, imaginary = self.project_in(x).to(gamma.dtype).chunk(2, -1)
        return torch.complex(real * gamma, imaginary * gamma)

    def finish(self, x: Tensor, h: Tensor) -> Tensor:
        """The output of positions with inputs x (..., D) and states h (..., H)."""
        out: Tensor = self.norm(x + self.dropout(self.project_out(torch.cat([h.real, h.imag], -1))))
        return out

    def forward(self, x_BLD: Tensor) -> Tensor:
        decay, _ = self.coefficients()
        return self.finish(x_BLD, recurrence(self.inputs(x_BLD), decay))


@dataclass(frozen=True)
class LRURecConfig(BaselineConfig):
    """Architecture of LRURec; dropout is that of every layer."""

    def build(self) -> LRURec:
        return LRURec(self)


class LRURec(Baseline):
    """Blocks of a linear recurrent unit and a feed-forward layer.

    As published: width 64, 2 blocks, |lambda| from 0.8 to 0.99 at first, H = 2D, a bias an item.
    Not as published: padding stands after the history, not before it, so no mask is needed; the
    biases start at 0, and the matrices alone from a truncated normal distribution.
    """

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        # The last column is the items' bias, which every query has times 1.
        self.item_embedding = nn.Embedding(config.n_items + 1, d + 1, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(d)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    LinearRecurrentUnit(d, config.dropout), FeedForward(d, config.dropout, 1e-5)
                )
                for _ in range(config.n_layers)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item_embedding.weight[:, -1] = 0
            self.item_embedding.weight[0] = 0

    def outputs(self, items_BL: Tensor, times_BL: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.dropout(self.item_embedding(items_BL)[..., :-1])))
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)

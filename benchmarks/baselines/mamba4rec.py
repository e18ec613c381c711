"""Mamba4Rec (Liu et al., 2024, arXiv 2403.03900), from its equations and those of Mamba."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.baseline import Baseline, BaselineConfig
from benchmarks.baselines.feed_forward import FeedForward
from model.convolution import CausalConv

EPS = 1e-12  # of every LayerNorm, as published


def selective_scan(
    x_BLE: Tensor, dt_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor
) -> Tensor:
    """y_t = h_t C_t of h_t = exp(dt_t A) h_{t-1} + dt_t x_t (outer) B_t, h_0 = 0: (B, L, E).

    Mamba (arXiv 2312.00752), section 3.2. Every channel and state decays at a rate of its own, so
    this does not become a product of matrices as Mamba-2's does; a loop over positions does the
    least work, and what it works on at a time fits a CPU's cache.
    """
    h = x_BLE.new_zeros(x_BLE.shape[0], *A_EN.shape)
    outputs = []
    # Unbound once: the gradient of an index taken in each turn would be as large as the whole.
    for dt, added, B, C in zip(
        dt_BLE.unbind(1), (dt_BLE * x_BLE).unbind(1), B_BLN.unbind(1), C_BLN.unbind(1), strict=True
    ):
        h = torch.exp(dt[..., None] * A_EN) * h + added[..., None] * B[:, None]
        outputs.append((h @ C[..., None]).squeeze(-1))
    return torch.stack(outputs, 1)


class Mamba(nn.Module):
    """The Mamba block: a gated selective state space model, (B, L, D) to (B, L, D)."""

    def __init__(self, config: Mamba4RecConfig) -> None:
        super().__init__()
        inner = config.expand * config.d_model
        self.dt_rank = math.ceil(config.d_model / 16)
        self.d_state = config.d_state
        self.project_in = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.d_conv)
        self.select = nn.Linear(inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.step_size = nn.Linear(self.dt_rank, inner)
        rates = torch.arange(1, config.d_state + 1, dtype=torch.get_default_dtype())
        self.A_log = nn.Parameter(rates.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.project_out = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x, gate = self.project_in(x_BLD).chunk(2, -1)
        x = F.silu(self.conv(x))
        dt, B, C = self.select(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = F.softplus(self.step_size(dt))
        # Under autocast too: a product of many decays is not for bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            x, dt, B, C = (part.to(self.A_log.dtype) for part in (x, dt, B, C))
            y = selective_scan(x, dt, -self.A_log.exp(), B, C) + self.D * x
        out: Tensor = self.project_out(y * F.silu(gate))
        return out


class Block(nn.Module):
    """Mamba, then the feed-forward layer; as published, a single block has no residual."""

    def __init__(self, config: Mamba4RecConfig) -> None:
        super().__init__()
        self.residual = config.n_layers > 1
        self.mamba = Mamba(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model, eps=EPS)
        self.ffn = FeedForward(config.d_model, config.dropout, EPS)

    def forward(self, x_BLD: Tensor) -> Tensor:
        y = self.dropout(self.mamba(x_BLD))
        out: Tensor = self.ffn(self.norm(y + x_BLD if self.residual else y))
        return out


@dataclass(frozen=True)
class Mamba4RecConfig(BaselineConfig):
    """Architecture of Mamba4Rec; expand, d_state, d_conv: E/D, N and the convolution's width."""

    n_layers: int = 1
    expand: int = 2
    d_state: int = 32
    d_conv: int = 4

    def build(self) -> Mamba4Rec:
        return Mamba4Rec(self)


class Mamba4Rec(Baseline):
    """Item embeddings, blocks of Mamba and a feed-forward layer, scores by the item table.

    As published: width 64, 1 block, the sizes of `Mamba4RecConfig`, linear layers and embeddings
    from N(0, 0.02) with biases 0 (the step size's too, which Mamba's own code starts otherwise).
    Not as published: a loss at every position of a window, which a causal model allows, instead
    of a sample a prefix.
    """

    def __init__(self, config: Mamba4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.n_items + 1, config.d_model, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model, eps=EPS)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layers)))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0

    def outputs(self, items_BL: Tensor, times_BL: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.norm(self.dropout(self.item_embedding(items_BL))))
        return out

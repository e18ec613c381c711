"""The two layers of a TiM4Rec block: the time-aware SSD and the feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.convolution import CausalConv, last_inputs
from model.gaps import GapTable, Knots
from model.groups import GatedRMSNorm, GroupedLayerNorm, GroupedLinear
from model.kernels import Kernels
from model.ssd import ssd_scan, ssd_step

MAX_DECAY = 30.0
"""Bound of dt |A|: exp(-30) forgets everything, and more would only cost later digits."""

FACTOR_SPAN = 2.0
"""c of exp(c tanh f(gap)): a gap changes the step size by at most e^2 either way."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return {"hardswish": F.hardswish, "silu": F.silu}[name]


class TimeAwareSSD(nn.Module):
    """One time-aware SSD block (paper, section 4.3): `forward` and `step` are the same sums."""

    def __init__(self, config: ModelConfig, gap_rows: int) -> None:
        super().__init__()
        self.config = config
        d, e, h, groups = config.d_model, config.d_inner, config.n_heads, config.n_groups
        self.in_proj = GroupedLinear(d, e + config.d_xbc + h, groups)
        self.conv = CausalConv(config.d_xbc, config.d_conv)
        # Mamba-2's initial step sizes (log-uniform in 0.001..0.1) and decay rates (1..16).
        dt = torch.empty(h).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(h).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(h))
        self.norm = GatedRMSNorm(e, config.norm_eps, groups)
        self.out_proj = GroupedLinear(e, d, groups)
        self.dropout = nn.Dropout(config.dropout)
        self.out_norm = GroupedLayerNorm(d, config.norm_eps, groups)
        self.residual = config.n_layers > 1
        self.activation = activation(config.activation)
        has_table = config.time == "causal" and config.gap_mix != "none"
        self.gap_table = GapTable(gap_rows, h) if has_table else None
        self.kernels: Kernels | None = None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (..., E), the convolution's input (..., E+2GN) group by group, and (..., H)."""
        c = self.config
        sizes = [width // c.n_groups for width in (c.d_inner, c.d_xbc, c.n_heads)]
        z, xbc, dt = torch.split(torch.unflatten(self.in_proj(x), -1, (c.n_groups, -1)), sizes, -1)
        return z.flatten(-2), xbc.flatten(-2), dt.flatten(-2)

    def _mix(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., H, P), B and C (..., G, N) of the convolution's output."""
        c = self.config
        sizes = [c.d_inner // c.n_groups, c.d_state, c.d_state]
        parts = torch.unflatten(self.activation(convolved), -1, (c.n_groups, -1))
        x, b, c_ = torch.split(parts, sizes, -1)
        return x.reshape(*x.shape[:-2], c.n_heads, c.head_dim), b, c_

    def _step_size(self, dt: Tensor, A: Tensor, knots: Knots | None, g: Tensor | None) -> Tensor:
        """Final step size (..., H): softplus, time and bound."""
        if g is not None:
            return F.softplus(dt * g + self.dt_bias)
        if self.gap_table is None or knots is None:
            delta = F.softplus(dt + self.dt_bias)
        elif self.config.gap_mix == "product":
            delta = F.softplus(dt * (1 + self.gap_table(knots)) + self.dt_bias)
        else:
            factor = torch.exp(FACTOR_SPAN * torch.tanh(self.gap_table(knots)))
            delta = F.softplus(dt + self.dt_bias) * factor
        return torch.minimum(delta, MAX_DECAY / -A)

    def _finish(self, y: Tensor, z: Tensor, x: Tensor) -> Tensor:
        out = self.dropout(self.out_proj(self.norm(y, z)))
        normed: Tensor = self.out_norm(out + x if self.residual else out)
        return normed

    def forward(
        self,
        x_BLD: Tensor,
        knots: Knots | None = None,
        g_BLH: Tensor | None = None,
        h_BHPN: Tensor | None = None,
        tail_BKC: Tensor | None = None,
        lengths_B: Tensor | None = None,
        *,
        ends_only: bool = False,
        sequence_BL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All L positions at once.

        Args:
            knots: (B, L) gaps of the causal time path.
            g_BLH: time factor of the sequence time path, before the softplus.
            h_BHPN, tail_BKC: state before the first position; zero when None.
            lengths_B: each row's own length; given, the state after it is returned.
            ends_only: the output is wanted at each row's last position only; needs `lengths_B`.
            sequence_BL: which sequence a position is of, from 0 on, where rows hold several, one
                after the other; not with a state.

        Returns:
            output (B, L, D), or (B, D) with `ends_only`; h (B, H, P, N) and tail (B, K-1, E+2GN),
            both None when `lengths_B` is None.
        """
        c = self.config
        z, xbc, dt = self._project(x_BLD)
        if sequence_BL is None:
            extended = self.conv.extend(xbc, tail_BKC)
            convolved = self.conv.over(extended)
        else:
            extended, convolved = xbc, self.conv.packed(xbc, sequence_BL)
        heads, b, c_ = self._mix(convolved)
        A = -torch.exp(self.A_log)
        delta = self._step_size(dt, A, knots, g_BLH)
        if lengths_B is not None:
            position = torch.arange(x_BLD.shape[1], device=x_BLD.device)
            delta = delta * (position < lengths_B[:, None])[..., None]
        kernels = self.kernels if delta.dtype == torch.float32 else None
        # Under autocast too: its exponentials of sums are not for bfloat16. The kernels see to
        # that themselves, and multiply faster in it.
        kind = x_BLD.device.type
        lower = kernels is not None and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if lower else delta.dtype
        with torch.autocast(x_BLD.device.type, enabled=False):
            heads, b, c_ = (part.to(dtype) for part in (heads, b, c_))
            y, h = (ssd_scan if kernels is None else kernels.scan)(
                heads,
                delta,
                A,
                b,
                c_,
                h_BHPN,
                need_state=lengths_B is not None,
                need_output=not ends_only,
                sequence_BL=sequence_BL,
            )
        tail = None if lengths_B is None else last_inputs(extended, lengths_B, c.d_conv - 1)
        if ends_only and h is not None and lengths_B is not None:
            end = torch.arange(len(x_BLD), device=x_BLD.device), (lengths_B - 1).clamp(min=0)
            heads, z, x_BLD = heads[end], z[end], x_BLD[end]
            by_group = torch.unflatten(h, 1, (c.n_groups, -1))
            y = (by_group @ c_[end][:, :, None, :, None]).flatten(1, 2)[..., 0]
        assert y is not None
        y = (y.to(delta.dtype) + self.D[:, None] * heads).flatten(-2)
        return self._finish(y, z, x_BLD), h, tail

    def step(
        self, x_BD: Tensor, knots: Knots | None, h_BHPN: Tensor, tail_BKC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position: returns output (B, D), h and tail."""
        z, xbc, dt = self._project(x_BD)
        extended = torch.cat([tail_BKC, xbc[:, None]], 1)
        heads, b, c_ = self._mix(self.conv.over(extended)[:, 0])
        A = -torch.exp(self.A_log)
        y, h = ssd_step(heads, self._step_size(dt, A, knots, None), A, b, c_, h_BHPN)
        y = (y + self.D[:, None] * heads).flatten(-2)
        return self._finish(y, z, x_BD), h, extended[:, 1:]


class FeedForward(nn.Module):
    """LayerNorm(W2 act(W1 x) + x), inner width 4D, pointwise in time."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, groups = config.d_model, config.n_groups
        self.fc1 = GroupedLinear(d, 4 * d, groups)
        self.fc2 = GroupedLinear(4 * d, d, groups)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = GroupedLayerNorm(d, config.ffn_norm_eps, groups)
        self.activation = activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.fc1(x)))
        out: Tensor = self.norm(self.dropout(self.fc2(inner)) + x)
        return out

"""Layers of an ensemble's members side by side: outputs of group g see inputs of group g only.

With one group they are torch's own layers, and their weights have the same names and shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedLinear(nn.Linear):
    """G linear maps: (..., in) to (..., out), weight (out, in / G), the rows group by group."""

    def __init__(self, n_in: int, n_out: int, groups: int) -> None:
        super().__init__(n_in // groups, n_out)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(x)
        weight = torch.unflatten(self.weight, 0, (self.groups, -1))
        out = torch.einsum("...gi,goi->...go", torch.unflatten(x, -1, (self.groups, -1)), weight)
        return out.flatten(-2) + self.bias


class GroupedLayerNorm(nn.LayerNorm):
    """A LayerNorm of each of the G parts of (..., width)."""

    def __init__(self, width: int, eps: float, groups: int) -> None:
        super().__init__(width, eps=eps)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(x)
        parts = torch.unflatten(x, -1, (self.groups, -1))
        normed = F.layer_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2)
        return torch.addcmul(self.bias, normed, self.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm(y silu(z)) of each group: the gate first (mamba-ssm's `RMSNormGated` with
    norm_before_gate=False and group_size = width / G)."""

    def __init__(self, width: int, eps: float, groups: int) -> None:
        super().__init__()
        self.eps, self.groups = eps, groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        gated = y * F.silu(z)
        if self.groups == 1:
            return F.rms_norm(gated, self.weight.shape, self.weight, self.eps)
        parts = torch.unflatten(gated, -1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight

"""Causal depthwise convolution, over a window and one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalConv(nn.Module):
    """Each channel's output is a weighted sum of its last K inputs.

    The inputs before the first position are the `tail` (B, K-1, C), zero when None. Weight
    (C, K), newest input last, and bias (C) are those of a grouped `nn.Conv1d`.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def extend(self, x_BLC: Tensor, tail_BKC: Tensor | None) -> Tensor:
        """The inputs with their tail before them: (B, K-1+L, C)."""
        if tail_BKC is None:
            return nn.functional.pad(x_BLC, (0, 0, self.width - 1, 0))
        return torch.cat([tail_BKC, x_BLC], 1)

    def forward(self, x_BLC: Tensor, tail_BKC: Tensor | None = None) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        return self.over(self.extend(x_BLC, tail_BKC))

    def packed(self, x_BLC: Tensor, sequence_BL: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C) where rows hold several sequences, each with zeros before it."""
        out = torch.addcmul(self.bias, x_BLC, self.weight[:, -1])
        for back in range(1, min(self.width, x_BLC.shape[1])):
            own = sequence_BL[:, back:] == sequence_BL[:, :-back]
            earlier = nn.functional.pad(x_BLC[:, :-back] * own[..., None], (0, 0, back, 0))
            out = torch.addcmul(out, earlier, self.weight[:, -1 - back])
        return out

    def over(self, extended: Tensor) -> Tensor:
        """The convolution of inputs that already have their tail: (B, K-1+L, C) to (B, L, C)."""
        length = extended.shape[1] - self.width + 1
        out = torch.addcmul(self.bias, extended[:, :length], self.weight[:, 0])
        for k in range(1, self.width):
            out = torch.addcmul(out, extended[:, k : k + length], self.weight[:, k])
        return out


def last_inputs(extended: Tensor, lengths_B: Tensor, width: int) -> Tensor:
    """The tail (B, width, C) that a row leaves: its `width` inputs up to its own length."""
    index = lengths_B[:, None] + torch.arange(width, device=extended.device)
    return extended.gather(1, index[..., None].expand(-1, -1, extended.shape[-1]))

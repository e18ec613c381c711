"""The position-wise layer of LRURec and Mamba4Rec."""

from __future__ import annotations

from torch import Tensor, nn


class FeedForward(nn.Module):
    """LayerNorm(x + W2 gelu(W1 x)), inner width 4D, dropout after the activation and after W2."""

    def __init__(self, width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.inner(x))
        return out

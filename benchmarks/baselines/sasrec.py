"""SASRec (Kang and McAuley, ICDM 2018, arXiv 1808.09781) of torch's own Transformer layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines.baseline import Baseline, BaselineConfig


@dataclass(frozen=True)
class SASRecConfig(BaselineConfig):
    """Architecture of SASRec."""

    n_heads: int = 2

    def build(self) -> SASRec:
        return SASRec(self)


class SASRec(Baseline):
    """Causal self-attention over item and position embeddings, scores by the item table.

    In RecBole's form, which TiM4Rec is compared with: 2 blocks of 2 heads, LayerNorm after each
    sum, a feed-forward layer of inner width 4D with gelu, weights from N(0, 0.02). Not so:
    positions count from the window's beginning, and a window is not padded to `max_len`.
    """

    config: SASRecConfig

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.item_embedding = nn.Embedding(config.n_items + 1, d, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_len, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d, config.n_heads, 4 * d, config.dropout, "gelu", batch_first=True
            )
            for _ in range(config.n_layers)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0

    def outputs(self, items_BL: Tensor, times_BL: Tensor) -> Tensor:
        length = items_BL.shape[1]
        embedded = self.item_embedding(items_BL) + self.position_embedding.weight[:length]
        x: Tensor = self.dropout(self.norm(embedded))
        later = nn.Transformer.generate_square_subsequent_mask(length, x.device, x.dtype)
        for block in self.blocks:
            x = block(x, later, is_causal=True)
        return x

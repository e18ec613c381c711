"""A small model that was never trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model import ModelConfig, TiM4Rec

KNOWN = [f"i{n:03}" for n in range(20)]


def tiny_model(item_ids: Sequence[str] = KNOWN, seed: int = 0) -> TiM4Rec:
    """Of width 5, with items that differ."""
    torch.manual_seed(seed)
    shape = ModelConfig(len(item_ids), d_model=5, n_layers=1, expand=4, head_dim=4, d_state=3)
    model = TiM4Rec(shape).eval()
    torch.nn.init.normal_(model.item_embedding.weight)
    return model

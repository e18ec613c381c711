"""Several models as one: their scores added up, their states stepped side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ConfigError, ModelConfig
from model.tim4rec import TiM4Rec


def stacked_config(config: ModelConfig, count: int) -> ModelConfig:
    """The architecture of a stack. Raises ConfigError where these towers can't be stacked."""
    return replace(config, d_model=count * config.d_model, n_groups=count * config.n_groups)


@torch.no_grad()
def stack(models: Sequence[TiM4Rec]) -> TiM4Rec:
    """One model of as many groups, whose scores are the sums of theirs, in evaluation mode.

    Raises:
        ConfigError: they are not of one architecture (dropout aside), or can't be stepped.
    """
    first = models[0].config
    for model in models:
        if replace(model.config, dropout=first.dropout, time_dropout=first.time_dropout) != first:
            raise ConfigError("towers must be of one architecture and vocabulary")
    stacked = stacked_config(first, len(models)).build().to(models[0].item_embedding.weight)
    parts = [model.state_dict() for model in models]
    stacked.load_state_dict({name: _joined(name, [p[name] for p in parts]) for name in parts[0]})
    return stacked.eval()


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if name == "request_table.weight":  # (rows, 2D): scales, then shifts
        return torch.cat([part.reshape(len(part), 2, -1) for part in parts], 2).flatten(1)
    if name.endswith(("embedding.weight", "gap_table.weight")):
        return torch.cat(parts, 1)
    return torch.cat(parts)

"""An ensemble as one model: its members' scores added up, their states stepped side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ConfigError, ModelConfig
from model.tim4rec import TiM4Rec


def ensemble_config(config: ModelConfig, members: int) -> ModelConfig:
    """The architecture of an ensemble of `members` models of this one.

    Raises ConfigError where these can't be one model.
    """
    return replace(config, d_model=members * config.d_model, n_groups=members * config.n_groups)


@torch.no_grad()
def combine(members: Sequence[TiM4Rec]) -> TiM4Rec:
    """One model, a group a member, whose scores are the sums of theirs, in evaluation mode.

    Raises:
        ConfigError: they are not of one architecture (dropout aside), or can't be stepped.
    """
    first = members[0].config
    for member in members:
        if replace(member.config, dropout=first.dropout, time_dropout=first.time_dropout) != first:
            raise ConfigError("members of an ensemble must be of one architecture and vocabulary")
    model = TiM4Rec(ensemble_config(first, len(members))).to(members[0].item_embedding.weight)
    parts = [member.state_dict() for member in members]
    model.load_state_dict({name: _joined(name, [p[name] for p in parts]) for name in parts[0]})
    return model.eval()


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if name == "request_table.weight":  # (rows, 2D): scales, then shifts
        return torch.cat([part.reshape(len(part), 2, -1) for part in parts], 2).flatten(1)
    if name.endswith(("embedding.weight", "gap_table.weight")):
        return torch.cat(parts, 1)
    return torch.cat(parts)

"""An ensemble as one model: its members' scores added up, their states stepped side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ConfigError, ModelConfig
from model.content import Content
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
    contents = [member.content for member in members if member.content is not None]
    model.content = Content.side_by_side(contents) if contents else None
    return model.eval()


@torch.no_grad()
def members_of(model: TiM4Rec) -> list[TiM4Rec]:
    """The models that `combine` would make this one of, one a group; a model of one group is its
    own only member."""
    config = model.config
    count = config.n_groups
    if count == 1:
        return [model]
    member = replace(config, d_model=config.d_model // count, n_groups=1)
    parts = {name: _split(name, value, count) for name, value in model.state_dict().items()}
    members = []
    for number in range(count):
        members.append(TiM4Rec(member).to(model.item_embedding.weight))
        members[-1].load_state_dict({name: part[number] for name, part in parts.items()})
        if model.content is not None:
            members[-1].content = model.content.of_member(number, count)
    return members


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if name == "request_table.weight":  # (rows, 2D): scales, then shifts
        return torch.cat([part.reshape(len(part), 2, -1) for part in parts], 2).flatten(1)
    return torch.cat(parts, int(_side_by_side(name)))


def _split(name: str, whole: Tensor, count: int) -> list[Tensor]:
    """The parts that `_joined` joins."""
    if name == "request_table.weight":
        parts = whole.reshape(len(whole), 2, -1).chunk(count, 2)
        return [part.flatten(1) for part in parts]
    return list(whole.chunk(count, int(_side_by_side(name))))


def _side_by_side(name: str) -> bool:
    """Whether a tensor's columns are the members', not its rows."""
    return name.endswith(("embedding.weight", "gap_table.weight"))

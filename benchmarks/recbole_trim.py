"""RecBole's models without work that changes no result; runs in RecBole's own environment.

RecBole pads every prefix to the longest that a model takes, ten times the mean one of a log with
short histories. What is computed without most of the padding is the same, but for which numbers
dropout draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TOGETHER = 128
"""Samples of similar length that are padded to the longest of them."""


def trim(name: str, model: Any) -> None:
    """Makes RecBole's model of that name leave out most padding. Raises KeyError for others."""
    _TRIMS[name](model)
    # One of RecBole's modules has every gradient of every model searched for NaN.
    torch.autograd.set_detect_anomaly(False)


def by_length(forward: Callable[..., Tensor], items: Tensor, *others: Tensor) -> Tensor:
    """`forward(items, *others)` of items (B, L), 0 at the right, in groups of like length.

    A group has the columns that its longest sample needs. All tensors begin with B, the output too.
    """
    lengths = (items > 0).sum(1)
    order = lengths.argsort()
    parts = [
        forward(items[rows, : int(lengths[rows].max())], *(other[rows] for other in others))
        for rows in torch.split(order, TOGETHER)
    ]
    return torch.cat(parts)[order.argsort()]


def _trim_last_output(model: Any) -> None:
    """A model whose output (B, H) is a function of a sample's first `length` items alone."""
    model.forward = partial(by_length, model.forward)


def _trim_bert4rec(model: Any) -> None:
    """Output (B, L, H), of which only places before the sample's end are read.

    A batch has ten slots a sample for masked items, most of them empty, and the loss scores every
    item of the catalogue for each; here only for those that hold one.
    """
    forward = model.forward

    def padded(items: Tensor) -> Tensor:
        return F.pad(forward(items), (0, 0, 0, model.max_seq_length - items.shape[1]))

    def loss(interaction: Any) -> Tensor:
        slots = interaction[model.MASK_INDEX]
        held = slots > 0  # RecBole's own test, though a history's first place is 0 as well
        output = model.forward(interaction[model.MASK_ITEM_SEQ])
        output = output[held.nonzero(as_tuple=True)[0], slots[held]]
        scores = output @ model.item_embedding.weight[: model.n_items].T + model.output_bias
        return F.cross_entropy(scores, interaction[model.POS_ITEMS][held])

    model.forward, model.calculate_loss = partial(by_length, padded), loss


def _trim_caser(model: Any) -> None:
    """Convolutions over a whole window, in which padding is an item like others, but untrained.

    A window that begins in the padding finds nothing else, so one such stands for all; what a
    kernel has below the longest history meets padding wherever it begins.
    """
    window, n_h = model.max_seq_length, model.n_h

    def convolved(items: Tensor, users: Tensor) -> Tensor:
        longest = items.shape[1]
        embedded = model.item_embedding(items).transpose(1, 2)  # (B, D, longest)
        padding = model.item_embedding.weight[0].detach()
        padded = torch.cat([embedded, padding[:, None].expand_as(embedded)], 2)[..., :window]
        weight = model.conv_v.weight[:, 0, :, 0]  # (n_v, window)
        vertical = (embedded @ weight[:, :longest].T).transpose(1, 2)
        vertical = vertical + weight[:, longest:].sum(1)[:, None] * padding
        vertical = vertical + model.conv_v.bias[:, None]
        kernels = [conv.weight[:, 0].transpose(1, 2) for conv in model.conv_h]  # (n_h, D, height)
        biases = [
            conv.bias + kernel[..., longest:].sum(2) @ padding
            for conv, kernel in zip(model.conv_h, kernels, strict=True)
        ]
        low = [
            F.conv1d(padded[..., : longest + height], kernel, bias).amax(2)
            for height, kernel, bias in zip(range(1, longest), kernels, biases, strict=False)
        ]
        high = F.conv1d(
            padded,
            torch.cat([kernel[..., :longest] for kernel in kernels[longest - 1 :]]),
            torch.cat(biases[longest - 1 :]),
        )
        begins = torch.arange(high.shape[2], device=high.device)
        last_begins = torch.arange(window - longest, -1, -1, device=high.device)
        late = begins > last_begins.repeat_interleave(n_h)[:, None]
        high = high.masked_fill(late, -torch.inf).amax(2)
        found = torch.cat([vertical.flatten(1), torch.relu(torch.cat([*low, high], 1))], 1)
        hidden = model.ac_fc(model.fc1(model.dropout(found)))
        both = torch.cat([hidden, model.user_embedding(users)], 1)
        output: Tensor = model.ac_fc(model.fc2(both))
        return output

    model.forward = lambda users, items: by_length(convolved, items, users)


_TRIMS = {
    "SASRec": _trim_last_output,
    "GRU4Rec": _trim_last_output,
    "BERT4Rec": _trim_bert4rec,
    "Caser": _trim_caser,
}

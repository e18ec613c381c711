"""The training objective: softmax cross-entropy over the whole catalogue."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from model import TiM4Rec
from training.batches import Batch


def batch_queries(model: TiM4Rec, batch: Batch) -> tuple[Tensor, Tensor]:
    """Query vectors (T, D) where the batch has a target, and the targets (T)."""
    at = batch.targets.flatten().nonzero().squeeze(1)
    targets = batch.targets.flatten().index_select(0, at)
    if not model.steppable:
        # One target a row, at its last real position, so the rows are in the targets' order.
        state = model.new_state(len(batch.items))
        return model.query(model.prefill(batch.items, batch.times, batch.lengths, state)), targets
    output = model(batch.items, batch.times, batch.request_times)
    # The item product is the dearest part of a step: padding is left out of it.
    return output.flatten(0, 1).index_select(0, at), targets


def softmax_loss(
    model: TiM4Rec, queries: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of targets (T) in 1..V under queries (T, D)."""
    # Without the padding's column: its -inf would make smoothing infinite.
    scores = model.scores(queries)[:, 1:]
    return F.cross_entropy(scores, targets - 1, label_smoothing=label_smoothing)

"""The training objective: softmax cross-entropy, over the whole catalogue or a sample of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Recommender, State
from training.batches import Batch

CPU_SCORES, GPU_SCORES = 1 << 21, 1 << 27


def scores_at_once(device: torch.device) -> int:
    """How many scores to have in flight: few enough for a CPU's cache, enough to fill a GPU."""
    return CPU_SCORES if device.type == "cpu" else GPU_SCORES


def batch_queries(model: Recommender, batch: Batch) -> tuple[Tensor, Tensor]:
    """Query vectors (T, D) where the batch has a target, and the targets (T)."""
    at = batch.targets.flatten().nonzero().squeeze(1)
    targets = batch.targets.flatten().index_select(0, at)
    if not model.causal:
        # One target a row, at its last real position, so the rows are in the targets' order.
        state = model.new_state(len(batch.items))
        return model.query(model.prefill(batch.items, batch.times, batch.lengths, state)), targets
    several = {} if batch.sequences is None else {"sequence_BL": batch.sequences}
    before = _state_before(model, batch)
    output = model(batch.items, batch.times, batch.request_times, before, **several)
    # The item product is the dearest part of a step: padding is left out of it.
    return output.flatten(0, 1).index_select(0, at), targets


@torch.no_grad()
def _state_before(model: Recommender, batch: Batch) -> State | None:
    if batch.before is None:
        return None
    return model.prefill(*batch.before, model.new_state(len(batch.items)))


def softmax_loss(
    model: Recommender, queries: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of targets (T) in 1..V under `model.scores` of queries (T, D)."""
    return table_softmax_loss(model.item_embedding.weight, queries, targets, label_smoothing)


def table_softmax_loss(
    table: Tensor, queries: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """`softmax_loss` under the products of queries (T, D) with a table (V+1, D), row 0 the
    padding's."""
    loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
        queries, table[1:], targets - 1, label_smoothing
    )
    return loss


def sampled_softmax_loss(
    model: Recommender, queries: Tensor, targets: Tensor, negatives: Tensor, log_inclusion: Tensor
) -> Tensor:
    """`sampled_table_softmax_loss` under `model.scores`."""
    weight = model.item_embedding.weight
    return sampled_table_softmax_loss(weight, queries, targets, negatives, log_inclusion)


def sampled_table_softmax_loss(
    weight: Tensor, queries: Tensor, targets: Tensor, negatives: Tensor, log_inclusion: Tensor
) -> Tensor:
    """An estimate of `table_softmax_loss` that reads, and has gradients of, the items it names
    only.

    A negative counts as exp(score) / its chance to be drawn, so the sum over the negatives is an
    unbiased estimate of the sum over all items but the target. The target is always there and is
    not corrected; where it was drawn as well it counts once.

    Args:
        negatives: (S) items in rising order, each once; log_inclusion: (S) of being drawn.
    """
    place = torch.searchsorted(negatives, targets).clamp(max=len(negatives) - 1)
    hit = (negatives[place] == targets).nonzero().squeeze(1)
    loss: Tensor = _SampledSoftmaxLoss.apply(  # type: ignore[no-untyped-call]
        queries,
        F.embedding(targets, weight, sparse=True),
        F.embedding(negatives, weight, sparse=True),
        log_inclusion,
        hit,
        place[hit],
    )
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """The loss and its gradients a few queries at a time.

    The (T, V) scores are never stored: they are the largest thing in a step, and writing them,
    their softmax and their gradient to memory takes longer than computing them.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, items: Tensor, targets: Tensor, smoothing: float
    ) -> Tensor:
        size, n_items = len(queries), len(items)
        rows = max(1, min(size, scores_at_once(queries.device) // n_items))
        buffer = queries.new_empty(rows, n_items)
        query_grad, item_grad = torch.empty_like(queries), torch.zeros_like(items)
        loss = queries.new_zeros(())
        for begin in range(0, size, rows):
            q, target = queries[begin : begin + rows], targets[begin : begin + rows, None]
            s = torch.mm(q, items.T, out=buffer[: len(q)])
            own = s.gather(1, target)
            if smoothing:
                own = (1 - smoothing) * own + smoothing * s.mean(1, keepdim=True)
            largest = s.amax(1, keepdim=True)
            total = s.sub_(largest).exp_().sum(1, keepdim=True)
            loss += (total.log() + largest - own).sum()
            s.mul_(1 / (total * size))  # from here on the gradient of the scores
            if smoothing:
                s.sub_(smoothing / (n_items * size))
            s.scatter_add_(1, target, torch.full_like(own, (smoothing - 1) / size))
            if ctx.needs_input_grad[0]:
                torch.mm(s, items, out=query_grad[begin : begin + rows])
            item_grad.addmm_(s.T, q)
        ctx.save_for_backward(query_grad, item_grad)
        return loss / size

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query_grad, item_grad = ctx.saved_tensors
        return query_grad * grad, item_grad * grad, None, None


class _SampledSoftmaxLoss(torch.autograd.Function):
    """As `_SoftmaxLoss`, of a target's own item and shared negatives.

    hit, place: query hit[i] has its target at negative place[i].
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        own_items: Tensor,
        negatives: Tensor,
        log_inclusion: Tensor,
        hit: Tensor,
        place: Tensor,
    ) -> Tensor:
        size = len(queries)
        rows = max(1, min(size, scores_at_once(queries.device) // len(negatives)))
        buffer = queries.new_empty(rows, len(negatives))
        query_grad, negative_grad = torch.empty_like(queries), torch.zeros_like(negatives)
        own_grad = torch.empty_like(own_items)
        loss = queries.new_zeros(())
        for begin in range(0, size, rows):
            q, own_item = queries[begin : begin + rows], own_items[begin : begin + rows]
            s = torch.mm(q, negatives.T, out=buffer[: len(q)]).sub_(log_inclusion)
            here = (hit >= begin) & (hit < begin + len(q))
            s[hit[here] - begin, place[here]] = -torch.inf
            own = (q * own_item).sum(1, keepdim=True)
            largest = torch.maximum(s.amax(1, keepdim=True), own)
            own_part = (own - largest).exp()
            total = s.sub_(largest).exp_().sum(1, keepdim=True) + own_part
            loss += (total.log() + largest - own).sum()
            s.mul_(1 / (total * size))  # from here on the gradient of the scores
            slope = (own_part / total - 1) / size
            torch.addmm(slope * own_item, s, negatives, out=query_grad[begin : begin + rows])
            own_grad[begin : begin + rows] = slope * q
            negative_grad.addmm_(s.T, q)
        ctx.save_for_backward(query_grad, own_grad, negative_grad)
        return loss / size

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query_grad, own_grad, negative_grad = ctx.saved_tensors
        return query_grad * grad, own_grad * grad, negative_grad * grad, None, None, None

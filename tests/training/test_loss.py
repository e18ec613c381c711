"""The fused loss is the cross-entropy of the model's own scores, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import ModelConfig, TiM4Rec
from tests.training.logs import chain_log
from training import loss as loss_module
from training.batches import prefix_batches, window_batches
from training.dataset import Protocol, build_dataset
from training.loss import batch_queries, softmax_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 97, 1 << 20])
def test_against_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, at_once: int
) -> None:
    monkeypatch.setattr(loss_module, "CPU_SCORES", at_once)
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=31, d_model=8, head_dim=8, time="none")).double()
    queries = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 32, (23,))
    weights = model.item_embedding.weight

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(3 * loss, [queries, weights]))

    ours = softmax_loss(model, queries, targets, smoothing)
    plain = F.cross_entropy(model.scores(queries)[:, 1:], targets - 1, label_smoothing=smoothing)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    found = gradients(ours)
    for a, b in zip(found, gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert not found[1][0].any(), "the padding is no item"


def test_large_scores_do_not_overflow() -> None:
    model = TiM4Rec(ModelConfig(n_items=5, d_model=4, head_dim=4, time="none"))
    with torch.no_grad():
        model.item_embedding.weight.copy_(torch.eye(6, 4) * 1e3)
    queries = torch.full((2, 4), 1e3, requires_grad=True)
    loss = softmax_loss(model, queries, torch.tensor([1, 5]))
    loss.backward()
    assert loss.isfinite()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


def test_queries_are_those_of_the_positions_with_a_target() -> None:
    dataset = build_dataset(chain_log(), Protocol(core=1))
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=dataset.n_items, time="causal")).eval()
    batch = next(window_batches(dataset, targets=100))
    queries, targets = batch_queries(model, batch)
    output = model(batch.items, batch.times, batch.request_times)
    expected = [
        (output[row, place], int(batch.targets[row, place]))
        for row in range(len(batch.items))
        for place in range(int(batch.lengths[row]))
    ]
    assert targets.tolist() == [target for _, target in expected]
    torch.testing.assert_close(queries, torch.stack([query for query, _ in expected]))


def test_a_sequence_model_trains_on_its_window_output() -> None:
    dataset = build_dataset(chain_log(), Protocol(core=1))
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=dataset.n_items, time="sequence", max_len=6)).eval()
    batch = next(prefix_batches(dataset, targets=40, max_len=6))
    queries, targets = batch_queries(model, batch)
    inside = batch.items > 0
    seconds = torch.where(inside, batch.times, 0).double() / 1000
    expected = model.window_output(batch.items, batch.lengths, seconds)
    torch.testing.assert_close(queries, expected)
    assert targets.tolist() == batch.targets.sum(1).tolist()
    softmax_loss(model, queries, targets).backward()
    assert model.item_embedding.weight.grad is not None

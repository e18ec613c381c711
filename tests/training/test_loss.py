"""The fused loss is the cross-entropy of the model's own scores, and so are its gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import ModelConfig, TiM4Rec
from tests.training.logs import chain_log
from training import loss as loss_module
from training.batches import prefix_batches, window_batches
from training.dataset import Protocol, build_dataset
from training.loss import batch_queries, sampled_softmax_loss, softmax_loss
from training.negatives import NegativeSampler


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


@pytest.fixture
def small() -> tuple[TiM4Rec, Tensor, Tensor]:
    """A model of 40 items with spread scores, 25 queries and their targets."""
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=40, d_model=8, head_dim=8, time="none")).double()
    torch.nn.init.normal_(model.item_embedding.weight, std=0.3)
    queries = torch.randn(25, 8, dtype=torch.float64, requires_grad=True)
    return model, queries, torch.randint(1, 41, (25,))


def both_gradients(loss: Tensor, model: TiM4Rec, queries: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, [queries, model.item_embedding.weight])
    return [part.to_dense() for part in found]


@pytest.mark.parametrize("at_once", [1, 97, 1 << 20])
def test_a_sample_of_all_items_is_the_full_loss(
    monkeypatch: pytest.MonkeyPatch, small: tuple[TiM4Rec, Tensor, Tensor], at_once: int
) -> None:
    monkeypatch.setattr(loss_module, "CPU_SCORES", at_once)
    model, queries, targets = small
    sampler = NegativeSampler(np.zeros(40, dtype=np.int64), 8000, 0.0)
    negatives, log_inclusion = sampler.draw(torch.Generator().manual_seed(0))
    assert negatives.tolist() == list(range(1, 41))
    sampled = sampled_softmax_loss(model, queries, targets, negatives, log_inclusion.double())
    full = softmax_loss(model, queries, targets)
    torch.testing.assert_close(sampled, full, rtol=1e-12, atol=0)
    pairs = zip(
        both_gradients(sampled, model, queries), both_gradients(full, model, queries), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_negatives_are_drawn_as_often_as_is_said(power: float) -> None:
    popularity = np.arange(20) ** 2
    sampler = NegativeSampler(popularity, 15, power)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(20)
    for _ in range(4000):
        items, log_inclusion = sampler.draw(generator)
        assert (items.diff() > 0).all()
        assert torch.equal(log_inclusion, sampler.log_inclusion[items - 1])
        drawn[items - 1] += 1
    chance = sampler.log_inclusion.exp()
    assert (chance[-1] > 5 * chance[0]) == (power > 0)
    error = (chance * (1 - chance) / 4000).sqrt()
    assert ((drawn / 4000 - chance).abs() < 4.5 * error).all()


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_correction_makes_the_sum_over_the_negatives_unbiased(
    small: tuple[TiM4Rec, Tensor, Tensor], power: float
) -> None:
    model, queries, targets = small
    query, target = queries[:1].detach(), targets[:1]
    sampler = NegativeSampler(np.arange(40), 20, power)
    generator = torch.Generator().manual_seed(1)
    # exp(loss) is the sum over target and negatives of exp(score - the target's).
    found = torch.tensor(
        [
            sampled_softmax_loss(model, query, target, items, chance.double()).exp().item()
            for items, chance in (sampler.draw(generator) for _ in range(3000))
        ]
    )
    expected = softmax_loss(model, query, target).exp().item()
    error = float(found.std() / len(found) ** 0.5)
    assert error < 0.02 * expected
    assert abs(float(found.mean()) - expected) < 4 * error


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_the_sampled_gradient_approaches_the_full_one(
    small: tuple[TiM4Rec, Tensor, Tensor], power: float
) -> None:
    model, queries, targets = small
    full = both_gradients(softmax_loss(model, queries, targets), model, queries)

    def error(draws: int) -> float:
        """Of the mean gradient over many draws, relative to the full gradient."""
        sampler = NegativeSampler(np.arange(40), draws, power)
        generator = torch.Generator().manual_seed(1)
        total = [torch.zeros_like(part) for part in full]
        for _ in range(300):
            negatives, log_inclusion = sampler.draw(generator)
            loss = sampled_softmax_loss(model, queries, targets, negatives, log_inclusion.double())
            for part, found in zip(total, both_gradients(loss, model, queries), strict=True):
                part += found / 300
        return max(float((a - b).norm() / b.norm()) for a, b in zip(total, full, strict=True))

    assert error(160) < 0.5 * error(20) < 0.1


def test_a_sampled_gradient_touches_only_the_items_it_names(
    small: tuple[TiM4Rec, Tensor, Tensor],
) -> None:
    model, queries, _ = small
    targets = torch.full((25,), 7)
    negatives = torch.tensor([3, 7, 30])
    loss = sampled_softmax_loss(model, queries, targets, negatives, torch.zeros(3))
    loss.backward()
    gradient = model.item_embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    touched = gradient.to_dense().abs().sum(1).nonzero().squeeze(1)
    assert touched.tolist() == [3, 7, 30]


def test_queries_are_those_of_the_positions_with_a_target() -> None:
    dataset = build_dataset(chain_log(), Protocol(1, 1))
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


@pytest.mark.parametrize("options", [{"time": "causal"}, {"time": "none"}])
def test_a_window_with_all_that_came_before_it_is_the_whole_history(
    options: dict[str, str],
) -> None:
    dataset = build_dataset(chain_log(users=9, length=40), Protocol(1, 1))
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=dataset.n_items, **options)).double().eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    asked: dict[str, Any] = {"request_dropout": 0.0, "request_moments": "next"}
    whole = next(window_batches(dataset, targets=1000, **asked))
    at = whole.targets > 0
    # The same user's items recur, but not at the same time.
    key = zip(whole.times[at].tolist(), whole.items[at].tolist(), strict=True)
    output = model(whole.items, whole.times, whole.request_times)
    expected = dict(zip(key, output[at], strict=True))
    forgotten = 0.0
    for batch in window_batches(dataset, context=100, max_len=7, targets=60, **asked):
        queries, _ = batch_queries(model, batch)
        inside = batch.targets > 0
        keys = zip(batch.times[inside].tolist(), batch.items[inside].tolist(), strict=True)
        wanted = torch.stack([expected[key] for key in keys])
        torch.testing.assert_close(queries, wanted, rtol=1e-9, atol=1e-9)
        alone, _ = batch_queries(model, dataclasses.replace(batch, before=None))
        forgotten = max(forgotten, float((alone - wanted).abs().max().detach()))
    assert forgotten > 0.1


def test_a_sequence_model_trains_on_its_window_output() -> None:
    dataset = build_dataset(chain_log(), Protocol(1, 1))
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

"""Packed batches train as padded ones do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, TiM4Rec
from model.ssd import ssd_scan
from tests.depth import examples
from tests.training.logs import chain_log
from training import trainer
from training.batches import Batch, window_batches
from training.config import TrainingConfig
from training.dataset import Protocol, build_dataset
from training.loss import batch_queries, softmax_loss
from training.packing import packed
from training.trainer import train

DATASET = build_dataset(chain_log(), Protocol())


def pieces(batch: Batch) -> list[tuple[list[int], ...]]:
    """Each sequence with all that is said of its positions."""
    found: list[tuple[list[int], ...]] = []
    for row, length in enumerate(batch.lengths.tolist()):
        parts = (batch.items, batch.times, batch.request_times, batch.targets)
        columns = [part[row, :length] for part in parts]
        numbers = torch.zeros_like(columns[0])
        if batch.sequences is not None:
            numbers = batch.sequences[row, :length]
            assert numbers[0] == 0
        for number in range(int(numbers.max()) + 1):
            mine = numbers == number
            found.append(tuple(column[mine].tolist() for column in columns))
    return found


@settings(max_examples=examples(12))
@given(
    targets=st.integers(1, 400),
    max_len=st.integers(1, 30),
    width=st.integers(1, 200),
    epoch=st.integers(0, 5),
)
def test_every_sequence_is_there_once_and_whole(
    targets: int, max_len: int, width: int, epoch: int
) -> None:
    for batch in window_batches(DATASET, targets=targets, max_len=max_len, epoch=epoch):
        rows = packed(batch, width)
        assert pieces(rows) == pieces(batch)
        assert rows.items.shape[1] <= max(width, int(batch.lengths.max()))
        assert int((rows.targets > 0).sum()) == int((batch.targets > 0).sum())


def test_the_loss_and_its_gradients_are_those_of_the_padded_batch() -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_items=DATASET.n_items, d_model=16, head_dim=16, d_state=8, dropout=0.0)
    model = TiM4Rec(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = next(window_batches(DATASET, targets=200))
    results = []
    for one in (batch, packed(batch, 64)):
        loss = softmax_loss(model, *batch_queries(model, one))
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for padded, found in zip(*results, strict=True):
        torch.testing.assert_close(found, padded, rtol=1e-9, atol=1e-12)


def test_a_run_with_kernels_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their place the reference, which they are compared with elsewhere: so it is the loop
    that is tested."""

    class Reference:
        scan = staticmethod(ssd_scan)

    config = ModelConfig(n_items=DATASET.n_items, d_model=16, head_dim=16, d_state=8, dropout=0.0)
    settings = TrainingConfig(targets=256, max_epochs=2, threads=1, request_dropout=0.0)
    padded = train(DATASET, config, settings)
    seen = []
    monkeypatch.setattr(trainer, "choose", lambda choice, device: Reference())
    monkeypatch.setattr(trainer, "packed", lambda batch: seen.append(1) or packed(batch))
    found = train(DATASET, config, settings)
    assert seen
    assert found.best_ndcg == pytest.approx(padded.best_ndcg, abs=2e-3)
    for name, value in padded.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=2e-3)

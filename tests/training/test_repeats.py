"""The repeat bias is the likeliest one, and makes ranks what a log says of repeats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import ModelConfig, TiM4Rec
from tests.training.logs import make_log
from training.config import TrainingConfig
from training.dataset import Dataset, Protocol, build_dataset
from training.evaluation import rank_targets, scored
from training.repeats import repeat_bias
from training.trainer import train


def log_with_repeats(share: float, users: int = 80, items: int = 30) -> Dataset:
    """Each user's last two items are old ones with this chance, all else is new to the user."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        history = rng.permutation(items)[:8]
        for place in (6, 7):
            if rng.random() < share:
                history[place] = history[rng.integers(6)]
        rows += [(f"u{user}", f"i{item}", 1000 * place) for place, item in enumerate(history)]
    return build_dataset(make_log(rows), Protocol(1, 1))


def untrained(dataset: Dataset) -> TiM4Rec:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=dataset.n_items, d_model=16, head_dim=8, d_state=8))
    torch.nn.init.normal_(model.item_embedding.weight, std=0.5)
    return model


def log_likelihood(model: TiM4Rec, dataset: Dataset, bias: float) -> float:
    """Of the validation targets, with the softmax written out."""
    total, odds = 0.0, []
    for batch in scored(model, dataset.histories, dataset.validation, at_target_time=(True,)):
        for row, target in enumerate(batch.targets.items):
            scores = batch.scores[True][row, 1:].double()
            seen = torch.zeros(len(scores), dtype=torch.bool)
            seen[[int(item) - 1 for item in batch.seen[row] if item > 0]] = True
            total += float((scores + bias * seen).log_softmax(0)[int(target) - 1])
            odds.append(float(scores[seen].logsumexp(0) - scores[~seen].logsumexp(0)))
    had = torch.tensor(float(np.mean(odds)) + bias)
    prior = torch.nn.functional.logsigmoid(had) + torch.nn.functional.logsigmoid(-had)
    return total + 0.5 * float(prior)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_other_bias_is_likelier(share: float) -> None:
    dataset = log_with_repeats(share)
    model = untrained(dataset)
    found = repeat_bias(model, dataset)
    best = log_likelihood(model, dataset, found)
    for other in (found - 0.05, found + 0.05, 0.0):
        assert log_likelihood(model, dataset, other) < best + 1e-9
    if share in (0.0, 1.0):
        assert (found > 0) == (share == 1.0)


def test_it_does_not_depend_on_the_bias_the_model_has() -> None:
    dataset = log_with_repeats(0.3)
    model = untrained(dataset)
    before = repeat_bias(model, dataset)
    model.repeat_bias = 5.0
    assert repeat_bias(model, dataset) == before


def test_without_repeats_kept_comes_to_filtered(tmp_path: Path) -> None:
    dataset = log_with_repeats(0.0)
    architecture = ModelConfig(n_items=dataset.n_items, d_model=16, head_dim=8, d_state=8)
    result = train(dataset, architecture, TrainingConfig(max_epochs=3, threads=1), tmp_path)
    assert result.model.repeat_bias < -3
    ranking = rank_targets(result.model, dataset.histories, dataset.test)[False]
    assert (ranking.kept > ranking.filtered).any()
    apart = [np.abs(ranks - ranking.filtered).mean() for ranks in (ranking.weighed, ranking.kept)]
    assert apart[0] < 0.2 * apart[1]

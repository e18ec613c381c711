"""A model goes on from its weights, on every row of its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from model import ModelConfig, TiM4Rec
from model.ensemble import combine
from tests.training.logs import DAY_MS, make_log
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, Protocol, build_dataset
from training.ensemble import ensemble_of, refit_ensemble, train_members
from training.interactions import Log
from training.recipe import model_config, training_config
from training.refit import REFIT, every_row, refit, warm_started
from training.trainer import Result, train

FORWARD = Protocol(2, 2, "forward")


def growing_log(seed: int = 0) -> Log:
    """Users who walk a ring of items, of which a new one comes every now and then."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        item, time = int(draw.integers(20)), int(draw.integers(300))
        for _ in range(12):
            item, time = item + int(draw.integers(1, 3)), time + int(draw.integers(1, 60))
            rows.append((f"u{user}", f"i{item % (20 + time // 40)}", 10**12 + time * DAY_MS))
    return make_log(rows)


@pytest.fixture(scope="module")
def log() -> Log:
    return growing_log()


@pytest.fixture(scope="module")
def dataset(log: Log) -> Dataset:
    return build_dataset(log, FORWARD)


@pytest.fixture(scope="module")
def every(log: Log) -> Dataset:
    return every_row(log, FORWARD)


OPTIONS: dict[str, Any] = {"max_epochs": 1, "targets": 64, "threads": 1}


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> Result[TiM4Rec]:
    config = training_config(dataset, **OPTIONS)
    return train(dataset, model_config(dataset, d_model=16, d_state=8), config)


def assert_same(one: TiM4Rec, other: TiM4Rec) -> None:
    assert one.config == other.config
    assert one.repeat_bias == other.repeat_bias
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_every_row_is_trained_on_and_nothing_is_set_aside(
    log: Log, dataset: Dataset, every: Dataset
) -> None:
    assert every.n_train_targets == len(every.histories.items) - len(every.histories)
    assert every.n_train_targets > dataset.n_train_targets
    assert len(every.validation) == len(every.test) == 0
    late = set(every.item_ids) - set(dataset.item_ids)
    assert late, "the log must have items that come after the cut"
    assert set(dataset.item_ids) < set(every.item_ids)
    counts = log.frame["item_id"].value_counts()
    often = counts.filter(counts["count"] >= 2)["item_id"].to_list()
    assert every.item_ids == sorted(often)


def test_a_warm_start_keeps_weights_and_vectors_by_id_and_maps_those_of_new_items(
    every: Dataset,
) -> None:
    vectors, met = cooccurrence_vectors(every, 8, seed=3)
    assert met.all()
    new = [row for row, item in enumerate(every.item_ids) if item in ("i3", "i4")]
    old = [row for row in reversed(range(every.n_items)) if row not in new]
    trained = TiM4Rec(ModelConfig(n_items=len(old), d_model=8, head_dim=4, d_state=3))
    trained.repeat_bias = -2.5
    mapped = vectors @ torch.randn(8, 8)
    with torch.no_grad():
        trained.item_embedding.weight[1:] = mapped[old]
    model = warm_started(trained, [every.item_ids[row] for row in old], every, 3)
    assert torch.equal(model.item_embedding.weight[1:][old], mapped[old])
    assert torch.allclose(model.item_embedding.weight[1:][new], mapped[new], atol=1e-2)
    assert torch.equal(model.item_embedding.weight[0], trained.item_embedding.weight[0])
    assert model.repeat_bias == -2.5
    for name, value in trained.state_dict().items():
        if name != "item_embedding.weight":
            assert torch.equal(model.state_dict()[name], value), name


class Killed(Console):
    """Ends a run once its first epoch is kept."""

    def print(self, *objects: Any, **options: Any) -> None:
        if str(objects[0]).startswith("epoch   1"):
            raise KeyboardInterrupt


def test_a_refit_goes_on_where_it_was_killed_and_is_a_function_of_its_seed(
    trained: Result[TiM4Rec], dataset: Dataset, every: Dataset, tmp_path: Path
) -> None:
    config = training_config(dataset, **OPTIONS)
    known = dataset.item_ids
    whole = refit(trained.model, known, every, config)
    assert whole.epochs == REFIT["max_epochs"]
    assert whole.model.config.n_items == every.n_items
    assert whole.model.repeat_bias == trained.model.repeat_bias != 0
    start = warm_started(trained.model, known, every, config.seed)
    assert not torch.equal(start.item_embedding.weight, whole.model.item_embedding.weight)
    with pytest.raises(KeyboardInterrupt):
        refit(trained.model, known, every, config, tmp_path, console=Killed())
    assert_same(refit(trained.model, known, every, config, tmp_path).model, whole.model)
    (checkpoint,) = tmp_path.rglob("*.safetensors")
    written = checkpoint.stat().st_mtime_ns
    assert_same(refit(trained.model, known, every, config, tmp_path).model, whole.model)
    assert checkpoint.stat().st_mtime_ns == written
    other = combine([trained.model])
    with torch.no_grad():
        other.item_embedding.weight[1] += 1
    refit(other, known, every, config, tmp_path)
    assert checkpoint.stat().st_mtime_ns == written, "a checkpoint belongs to the weights before"


def test_a_refit_learns_what_was_set_aside(
    trained: Result[TiM4Rec], dataset: Dataset, every: Dataset
) -> None:
    """The items that nobody had before the cut come to be expected after those before them."""
    config = training_config(dataset, **OPTIONS)
    start = warm_started(trained.model, dataset.item_ids, every, config.seed).eval()
    model = refit(trained.model, dataset.item_ids, every, config).model

    def likelihood(model: TiM4Rec) -> float:
        items, times = every.histories.items, every.histories.times
        ends = every.histories.offsets[1:]
        found = []
        for begin, end in zip(every.histories.offsets[:-1], ends, strict=True):
            row = torch.from_numpy(items[begin:end].astype(np.int64))[None]
            when = torch.from_numpy(times[begin:end])[None]
            with torch.no_grad():
                scores = model.scores(model(row, when)[0, :-1])[:, 1:]
            wanted = row[0, 1:] - 1
            chosen = scores.log_softmax(1)[torch.arange(len(wanted)), wanted]
            late = when[0, 1:] >= dataset.cut_ms
            found.append(chosen[late])
        return float(torch.cat(found).mean())

    assert likelihood(model) > likelihood(start)


def test_each_member_of_an_ensemble_is_refitted_with_its_own_seed(
    dataset: Dataset, every: Dataset, tmp_path: Path
) -> None:
    config = training_config(dataset, seed=3, **OPTIONS)
    architecture = model_config(dataset, d_model=16, d_state=8)
    members = train_members(dataset, architecture, config, 2)
    bias = ensemble_of(members, dataset, config).model.repeat_bias
    found = refit_ensemble(
        [member.model for member in members], dataset.item_ids, every, config, tmp_path,
        repeat_bias=bias,
    )  # fmt: skip
    assert found.epochs == 2 * REFIT["max_epochs"]
    apart = [
        refit(
            member.model, dataset.item_ids, every,
            training_config(dataset, seed=seed, **OPTIONS),
        ).model
        for member, seed in zip(members, (6, 7), strict=True)
    ]  # fmt: skip
    together = combine(apart)
    together.repeat_bias = bias
    assert_same(found.model, together)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2

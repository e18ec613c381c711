"""Item vectors that are an id's own and what the item is."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from model import ModelConfig, TiM4Rec
from model.content import About, Content
from model.ensemble import combine
from tests.training.logs import DAY_MS, KINDS, kinds_log, table_of
from training.content import RIDGE, join_vectors, share_vectors
from training.dataset import Dataset, Protocol, build_dataset
from training.ensemble import train_ensemble
from training.forward.models import Served
from training.interactions import Log
from training.item_features import ItemFeatures, abouts
from training.item_table import with_features
from training.new_items import LEAST_EVENTS, content_vectors, fit_new_items, with_new_items
from training.recipe import model_config, training_config
from training.refit import every_row, refit, warm_started
from training.trainer import Result, train

FORWARD = Protocol(2, 2, "forward")
OPTIONS: dict[str, Any] = {"max_epochs": 4, "targets": 128, "threads": 1, "lr": 1e-2}


@pytest.fixture(scope="module")
def log() -> Log:
    return kinds_log()


@pytest.fixture(scope="module")
def table(log: Log) -> pl.DataFrame:
    return table_of(log)


@pytest.fixture(scope="module")
def dataset(log: Log, table: pl.DataFrame) -> Dataset:
    return with_features(build_dataset(log, FORWARD), table)


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> Result[TiM4Rec]:
    config = training_config(dataset, **OPTIONS)
    return train(dataset, model_config(dataset, d_model=16, d_state=8), config)


def features_of(dataset: Dataset) -> ItemFeatures:
    assert dataset.features is not None
    return dataset.features


def content_of(model: TiM4Rec) -> Content:
    assert model.content is not None
    return model.content


def small_model(dataset: Dataset) -> TiM4Rec:
    torch.manual_seed(0)
    return TiM4Rec(ModelConfig(n_items=dataset.n_items, d_model=8, head_dim=4, d_state=3))


def test_vectors_stay_what_they_are_and_are_one_table_again(
    dataset: Dataset, table: pl.DataFrame
) -> None:
    model, features = small_model(dataset), features_of(dataset)
    before = model.item_embedding.weight.detach().clone()
    names = model.state_dict().keys()
    share_vectors(model, features, 0.5)
    model.eval()
    assert torch.allclose(model.item_embedding.weight, before, atol=1e-5)
    (shared,) = model.item_embedding.parametrizations.weight  # type: ignore[union-attr]
    parts = shared.parts().detach()
    with torch.no_grad():
        shared.vectors.add_(1)
        moved = model.item_embedding.weight.detach().clone()
    assert not torch.allclose(moved[1:], before[1:], atol=0.1)
    assert torch.equal(moved[0], before[0]), "the padding is no item"
    join_vectors(model, features)
    assert model.state_dict().keys() == names
    assert torch.equal(model.item_embedding.weight, moved)
    content, about = content_of(model), abouts(table)
    own = np.stack([content.part_of(about[item]) for item in dataset.item_ids])
    np.testing.assert_allclose(own, shared.parts().detach()[1:], atol=1e-5)
    assert (content.scale, content.shift.any()) == (1.0, False)
    # They begin as near to the vectors as a ridge regression comes.
    of_items = np.zeros((dataset.n_items, len(features.hashes)))
    for row, (begin, end) in enumerate(
        zip(features.offsets[:-1], features.offsets[1:], strict=True)
    ):
        of_items[row, features.places[begin:end]] = (end - begin) ** -0.5
    gram = of_items.T @ of_items + RIDGE * np.eye(of_items.shape[1])
    expected = of_items @ np.linalg.solve(gram, of_items.T @ before[1:].numpy())
    np.testing.assert_allclose(parts[1:], expected, atol=1e-4)


def test_ids_are_left_out_at_random(dataset: Dataset) -> None:
    model, features = small_model(dataset), features_of(dataset)
    share_vectors(model, features, 0.3)
    model.train()
    whole = model.eval().item_embedding.weight.detach()
    (shared,) = model.item_embedding.parametrizations.weight  # type: ignore[union-attr]
    parts = shared.parts().detach()
    model.train()
    shares = []
    for _ in range(20):
        found = model.item_embedding.weight.detach()[1:]
        left_out = (found == parts[1:]).all(1)
        assert torch.equal(found[~left_out], whole[1:][~left_out])
        shares.append(float(left_out.float().mean()))
    assert 0.2 < np.mean(shares) < 0.4
    assert len(set(shares)) > 1


def test_an_item_of_which_nothing_is_known_keeps_its_own_vector(log: Log) -> None:
    table = table_of(log)
    bare = table.with_columns(
        title=pl.when(pl.col("item_id") != "i40").then("title"),
        categories=pl.when(pl.col("item_id") != "i40").then("categories").otherwise([]),
    )
    dataset = with_features(build_dataset(log, FORWARD), bare)
    row = 1 + dataset.item_ids.index("i40")
    model = small_model(dataset)
    before = model.item_embedding.weight.detach().clone()
    share_vectors(model, features_of(dataset), 0.9)
    for _ in range(5):
        assert torch.equal(model.train().item_embedding.weight[row], before[row])


def test_every_column_of_a_table_says_something() -> None:
    table = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": [None] * 3,
            "categories": [[]] * 3,
            "price": ["17.00", "", "30"],
            "new": [True, False, None],
            "tags": [["x", "y"], None, ["y"]],
            "weight": [math.nan, 1.0, 2.0],
            "since": [date(2026, 1, 1)] * 3,
        },
        schema_overrides={"title": pl.String, "categories": pl.List(pl.String)},
    )
    assert {item: about.values for item, about in abouts(table).items()} == {
        "a": {
            "price": ["17.00"], "new": [True], "tags": ["x", "y"], "weight": [],
            "since": ["2026-01-01"],
        },
        "b": {
            "price": [], "new": [False], "tags": [], "weight": [1.0], "since": ["2026-01-01"],
        },
        "c": {
            "price": ["30"], "new": [], "tags": ["y"], "weight": [2.0], "since": ["2026-01-01"],
        },
    }  # fmt: skip
    features = ItemFeatures.of(["a", "b", "c"], table)
    assert features is not None
    assert np.diff(features.offsets).tolist() == [3, 1, 3]  # price, tag y, since


def test_a_feature_of_one_item_only_is_none(table: pl.DataFrame, dataset: Dataset) -> None:
    features = features_of(dataset)
    assert len(features.hashes) == 2 * len(KINDS) + 1  # categories, their words, and "fine"
    assert np.diff(features.offsets).tolist() == [3] * dataset.n_items
    assert ItemFeatures.of(dataset.item_ids, table.head(1)) is None


def test_a_killed_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    architecture = model_config(dataset, d_model=16, d_state=8)
    config = training_config(dataset, **(OPTIONS | {"max_epochs": 2}))
    whole = train(dataset, architecture, config).model
    train(dataset, architecture, replace(config, max_epochs=1), tmp_path)
    resumed = train(dataset, architecture, config, tmp_path).model
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert content_of(resumed).to_bytes() == content_of(whole).to_bytes()


def new_ids(log: Log, dataset: Dataset) -> list[str]:
    known = set(dataset.item_ids)
    return [item for item in log.frame["item_id"].unique().sort() if item not in known]


def ranks_of_kind(served: Served, dataset: Dataset, new: list[str]) -> list[float]:
    """For a user of each kind, the share of the kind's own among the best new items."""
    found = []
    for kind in range(4):
        rows = [n for n, item in enumerate(dataset.item_ids, 1) if int(item[1:]) % 4 == kind]
        items = torch.tensor([rows[-4:]])
        times = torch.arange(4)[None] * DAY_MS
        with torch.no_grad():
            scores = served.model.scores(served.model(items, times)[0, -1])
        order = sorted(new, key=lambda item: -float(scores[1 + served.item_ids.index(item)]))
        best = order[: len(new) // 5]
        found.append(np.mean([int(item[1:]) % 4 == kind for item in best]))
    return found


def test_new_items_are_ranked_by_what_they_are(
    log: Log, table: pl.DataFrame, dataset: Dataset, trained: Result[TiM4Rec]
) -> None:
    model, new = trained.model, new_ids(log, dataset)
    assert len(new) > 20
    raw = content_of(model)
    served = Served(model, dataset.item_ids)
    assert dataset.cut_ms is not None
    fitted = fit_new_items(log, served, raw, table, dataset.cut_ms)
    assert fitted.scale > 0
    assert fitted.shift.any()
    for content in (raw, fitted):
        listing = with_new_items(served, content_vectors(content, table))
        assert set(listing.item_ids) == set(table["item_id"])
        assert list(listing.item_ids[: dataset.n_items]) == dataset.item_ids
        assert min(ranks_of_kind(listing, dataset, new)) > 0.9
    assert model.scoring is None
    # Too few of them were had to know how they should be ranked.
    late = int(log.frame["time_ms"].sort()[-LEAST_EVENTS // 2])
    assert fit_new_items(log, served, raw, table, late) is raw


def test_a_refit_goes_on_with_the_content(
    log: Log, table: pl.DataFrame, dataset: Dataset, trained: Result[TiM4Rec]
) -> None:
    every = with_features(every_row(log, FORWARD), table)
    shift = np.full(16, 0.25, np.float32)
    model = trained.model
    before = content_of(model)
    try:
        model.content = replace(before, scale=2.0, shift=shift)
        start = warm_started(model, dataset.item_ids, every, 0)
        about = abouts(table)
        for item in new_ids(log, dataset):
            if item in every.item_ids:
                own = start.item_embedding.weight[1 + every.item_ids.index(item)]
                np.testing.assert_allclose(own.detach(), before.part_of(about[item]), atol=1e-5)
        found = refit(model, dataset.item_ids, every, training_config(dataset, **OPTIONS)).model
    finally:
        model.content = before
    after = content_of(found)
    assert (after.scale, after.shift.tolist()) == (2.0, shift.tolist())
    assert not np.array_equal(after.vectors, before.vectors)
    assert np.corrcoef(after.vectors.ravel(), before.vectors.ravel())[0, 1] > 0.5


def test_what_a_table_no_longer_says_is_not_forgotten(dataset: Dataset) -> None:
    """A warm start without the item table has titles and categories, and no attributes."""
    hashes = features_of(dataset).hashes
    vectors = np.ones((len(hashes), 2), np.float32)
    more = np.sort(np.append(hashes, [5, 7]))
    before = Content(more, np.full((len(more), 2), 3, np.float32), np.zeros(2, np.float32), 2.0)
    after = before.updated(hashes, vectors)
    assert after.hashes.tolist() == more.tolist()
    assert after.vectors[:, 0].tolist() == [3 if own in (5, 7) else 1 for own in more]
    assert after.scale == 2.0


def test_an_ensemble_has_its_members_contents(dataset: Dataset) -> None:
    architecture = model_config(dataset, d_model=16, d_state=8)
    config = training_config(dataset, **(OPTIONS | {"max_epochs": 1}))
    together = train_ensemble(dataset, architecture, config, 2).model
    alone = [train(dataset, architecture, replace(config, seed=seed)).model for seed in (0, 1)]
    about = About("fine new hats", ["hats"])
    parts = [content_of(model).vector(about) for model in alone]
    np.testing.assert_array_equal(content_of(together).vector(about), np.concatenate(parts))
    assert combine(alone).content is not None


def test_a_sampled_loss_learns_nothing_of_it(dataset: Dataset) -> None:
    config = training_config(dataset, **(OPTIONS | {"max_epochs": 1, "loss": "sampled"}))
    model = train(dataset, model_config(dataset, d_model=16, d_state=8), config).model
    assert model.content is None

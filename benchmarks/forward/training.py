"""The models of a walk forward: one trained before the cut, and one retrained at each border."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.forward.models import Served
from benchmarks.forward.walk import Walk
from model import TiM4Rec
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, build_dataset
from training.interactions import Log
from training.recipe import model_config, training_config
from training.trainer import train, train_model

RETRAINING = {"max_epochs": 2, "lr": 1e-3, "warmup": 10, "item_init": "random"}
"""Against the default recipe. `random`: vectors stay as `warm_started` has them."""

RIDGE = 1e-3


def frozen_model(log: Log, walk: Walk, folder: Path, console: Console, **options: Any) -> Served:
    """The default recipe on what lies before the cut; goes on from what `folder` holds.

    Args:
        options: of `TrainingConfig`.
    """
    dataset = build_dataset(_before(log, walk, 0))
    config = training_config(dataset, **options)
    result = train(dataset, model_config(dataset), config, folder, console=console)
    return Served(result.model, dataset.item_ids)


def retrained_models(
    log: Log, walk: Walk, frozen: Served, folder: Path, console: Console, **options: Any
) -> list[Served]:
    """What is served in each period: the frozen model in the first, then at each border the model
    before it trained on, on every interaction until the border."""
    served = [frozen]
    for period in range(1, len(walk.borders)):
        dataset = _every_row(build_dataset(_before(log, walk, period)))
        console.print(f"border {period}: {dataset.n_items} items", highlight=False)
        config = training_config(dataset, **(options | RETRAINING))
        start = partial(warm_started, served[-1], dataset, config.seed)
        # A checkpoint does not say which weights its run started from: its folder does.
        place = folder / f"{period}-{_digest(served[-1])}"
        result = train_model(dataset, start, config, place, console=console)
        served.append(Served(result.model, dataset.item_ids))
    return served


@torch.no_grad()
def warm_started(trained: Served, dataset: Dataset, seed: int) -> TiM4Rec:
    """A model for the items of `dataset` with the weights of `trained`.

    The vectors of items that it lacks are what co-occurrence vectors say, by the linear map that
    takes those of the other items nearest to their trained ones; random where there is none.
    """
    model = TiM4Rec(replace(trained.model.config, n_items=dataset.n_items))
    place = {item: row for row, item in enumerate(trained.item_ids, 1)}
    rows = torch.tensor([place.get(item, 0) for item in dataset.item_ids])
    kept = rows > 0
    old = trained.model.item_embedding.weight[rows]
    vectors, met = cooccurrence_vectors(dataset, old.shape[1], seed=seed)
    mapped = vectors @ _linear_map(vectors[kept & met], old[kept & met])
    table = model.item_embedding.weight.clone()
    table[0] = trained.model.item_embedding.weight[0]
    table[1:][met] = mapped[met]
    table[1:][kept] = old[kept]
    model.load_state_dict(trained.model.state_dict() | {"item_embedding.weight": table})
    return model


def _linear_map(x: Tensor, y: Tensor) -> Tensor:
    """The least squares solution M of x M = y, with a ridge."""
    x, y = x.double(), y.double()
    ridge = RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    found: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return found


def _digest(served: Served) -> str:
    found = hashlib.blake2b(digest_size=4)
    for value in served.model.state_dict().values():
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _before(log: Log, walk: Walk, period: int) -> Log:
    return replace(log, frame=log.frame.filter(pl.col("time_ms") < int(walk.borders[period])))


def _every_row(dataset: Dataset) -> Dataset:
    """Trained on to the end of each history; the validation targets are then among what is."""
    return replace(dataset, train_ends=dataset.histories.offsets[1:].copy())

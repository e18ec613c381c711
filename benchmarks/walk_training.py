"""The models of a walk forward: one trained before the cut, and one retrained at each border."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console

from benchmarks.walk_forward import Walk
from benchmarks.walk_models import Served
from model import TiM4Rec
from training.dataset import Dataset, build_dataset
from training.interactions import Log
from training.recipe import model_config, training_config
from training.trainer import train, train_model

RETRAINING = {"max_epochs": 2, "lr": 1e-3, "item_init": "random"}
"""Against the default recipe. `random`: vectors that are kept stay as they are."""


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
        start = partial(warm_started, served[-1], dataset.item_ids)
        config = training_config(dataset, **(options | RETRAINING))
        # A checkpoint does not say which weights its run started from: its folder does.
        place = folder / f"{period}-{_digest(served[-1])}"
        result = train_model(dataset, start, config, place, console=console)
        served.append(Served(result.model, dataset.item_ids))
    return served


@torch.no_grad()
def warm_started(trained: Served, item_ids: Sequence[str]) -> TiM4Rec:
    """A model for other items with the weights of `trained`; vectors of items that it lacks are
    drawn at random."""
    model = TiM4Rec(replace(trained.model.config, n_items=len(item_ids)))
    place = {item: row for row, item in enumerate(trained.item_ids, 1)}
    rows = torch.tensor([0, *(place.get(item, 0) for item in item_ids)])
    old = trained.model.item_embedding.weight[rows]
    table = torch.where(rows[:, None] > 0, old, model.item_embedding.weight)
    model.load_state_dict(trained.model.state_dict() | {"item_embedding.weight": table})
    return model


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

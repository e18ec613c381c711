"""The models of a walk forward: one trained before the cut, and one retrained at each border."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console

from benchmarks.walk_forward import Walk
from benchmarks.walk_models import Served
from model import ModelConfig, TiM4Rec
from model.config import TimeUse
from training.dataset import Dataset, build_dataset
from training.interactions import Log
from training.recipe import model_config, training_config
from training.trainer import train

RETRAINING = {"max_epochs": 2, "lr": 1e-3, "item_init": "random"}
"""Against the default recipe. `random`: what items start at whose vectors are not kept."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """An architecture whose fresh weights are those of a trained model.

    config: for the items `item_ids`. Vectors of items that the trained model lacks are drawn at
    random.
    """

    config: ModelConfig
    item_ids: Sequence[str]
    trained: Served

    @classmethod
    def of(cls, trained: Served, item_ids: Sequence[str]) -> WarmStart:
        config = replace(trained.model.config, n_items=len(item_ids))
        return cls(config, item_ids, trained)

    @property
    def n_items(self) -> int:
        return self.config.n_items

    @property
    def max_len(self) -> int:
        return self.config.max_len

    @property
    def time_use(self) -> TimeUse:
        return self.config.time_use

    @property
    def uses_request_time(self) -> bool:
        return self.config.uses_request_time

    def to_dict(self) -> dict[str, Any]:
        """Names the weights as well: a run from others is another run."""
        digest = hashlib.blake2b("\n".join(self.trained.item_ids).encode(), digest_size=16)
        for name, value in self.trained.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return self.config.to_dict() | {"start": digest.hexdigest()}

    @torch.no_grad()
    def build(self) -> TiM4Rec:
        model = self.config.build()
        table = model.item_embedding.weight
        place = {item: row for row, item in enumerate(self.trained.item_ids, 1)}
        rows = torch.tensor([place.get(item, 0) for item in self.item_ids])
        kept = rows.nonzero()[:, 0]
        weights = dict(self.trained.model.state_dict())
        weights["item_embedding.weight"] = table.clone()
        weights["item_embedding.weight"][kept + 1] = self.trained.model.item_embedding.weight[
            rows[kept]
        ]
        model.load_state_dict(weights)
        return model


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
    log: Log,
    walk: Walk,
    frozen: Served,
    folder: Path,
    console: Console,
    **options: Any,
) -> list[Served]:
    """What is served in each period: the frozen model in the first, then at each border the model
    before it trained on, on every interaction until the border."""
    served = [frozen]
    for period in range(1, len(walk.borders)):
        dataset = _every_row(build_dataset(_before(log, walk, period)))
        start = WarmStart.of(served[-1], dataset.item_ids)
        console.print(f"border {period}: {dataset.n_items} items", highlight=False)
        training = training_config(dataset, **(options | RETRAINING))
        result = train(dataset, start, training, folder / str(period), console=console)
        served.append(Served(result.model, dataset.item_ids))
    return served


def _before(log: Log, walk: Walk, period: int) -> Log:
    return replace(log, frame=log.frame.filter(pl.col("time_ms") < int(walk.borders[period])))


def _every_row(dataset: Dataset) -> Dataset:
    """Trained on to the end of each history; the validation targets are then among what is."""
    return replace(dataset, train_ends=dataset.histories.offsets[1:].copy())

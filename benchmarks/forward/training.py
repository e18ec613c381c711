"""The models of a walk forward: one trained before the cut, one refitted at each border, and the
one that is published at the cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from training.dataset import Protocol, build_dataset
from training.forward.models import Served
from training.forward.walk import Walk
from training.interactions import Log
from training.recipe import REFITTED_CORE, model_config, training_config
from training.refit import every_row, refit
from training.trainer import train


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
    before it refitted on every interaction until the border."""
    served = [frozen]
    for period in range(1, len(walk.borders)):
        dataset = every_row(_before(log, walk, period), Protocol())
        console.print(f"border {period}: {dataset.n_items} items", highlight=False)
        before = served[-1]
        config = training_config(dataset, **options)
        place = folder / str(period)
        result = refit(before.model, before.item_ids, dataset, config, place, console=console)
        served.append(Served(result.model, dataset.item_ids))
    return served


@dataclass(frozen=True, slots=True)
class Refitted:
    """base: trained on what lies before `since_ms`, validated on what follows until the cut;
    refitted: trained on, on everything before the cut."""

    base: Served
    since_ms: int
    refitted: Served


def refitted_model(
    log: Log, walk: Walk, folder: Path, console: Console, **options: Any
) -> Refitted:
    """What `tim4rec train` publishes at the cut; goes on from what `folder` holds.

    Args:
        options: of `TrainingConfig`.
    """
    before = _before(log, walk, 0)
    protocol = Protocol(REFITTED_CORE, REFITTED_CORE, "forward")
    dataset = build_dataset(before, protocol)
    assert dataset.cut_ms is not None
    config = training_config(dataset, **options)
    base = train(dataset, model_config(dataset), config, folder, console=console)
    every = every_row(before, protocol)
    console.print(f"refit: {every.n_items} items", highlight=False)
    result = refit(base.model, dataset.item_ids, every, config, folder, console=console)
    return Refitted(
        Served(base.model, dataset.item_ids),
        dataset.cut_ms,
        Served(result.model, every.item_ids),
    )


def _before(log: Log, walk: Walk, period: int) -> Log:
    return replace(log, frame=log.frame.filter(pl.col("time_ms") < int(walk.borders[period])))

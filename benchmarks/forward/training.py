"""The models of a walk forward: one trained before the cut, one refitted at each border, and the
one that is published at the cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from model.live.mixture import Mixture
from training.dataset import Protocol, build_dataset
from training.forward.models import Served
from training.forward.walk import Walk
from training.interactions import Log
from training.item_table import with_features
from training.mixture import Walked, refit_mixture
from training.new_items import fit_new_items
from training.recipe import REFITTED_CORE, model_config, training_config
from training.refit import every_row, grown_dataset, refit
from training.trainer import train
from training.warm_start import REPLAY, WARM, WarmRun, share_held_out

PUBLISHED = Protocol(REFITTED_CORE, REFITTED_CORE, "forward")
"""Of what `tim4rec train` publishes."""


def frozen_model(log: Log, walk: Walk, folder: Path, console: Console, **options: Any) -> Served:
    """The default recipe on what lies before the cut; goes on from what `folder` holds.

    Args:
        options: of `TrainingConfig`.
    """
    dataset = build_dataset(before(log, int(walk.borders[0])))
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
        so_far, place = before(log, int(walk.borders[period])), folder / str(period)
        served.append(trained_further(served[-1], so_far, place, console, Protocol(), **options))
    return served


def trained_further(
    trained: Served, log: Log, folder: Path, console: Console, protocol: Protocol, **options: Any
) -> Served:
    """A model refitted on a log; goes on from what `folder` holds."""
    dataset = every_row(log, protocol)
    console.print(f"refit: {dataset.n_items} items", highlight=False)
    config = training_config(dataset, **options)
    result = refit(trained.model, trained.item_ids, dataset, config, folder, console=console)
    return Served(result.model, dataset.item_ids)


@dataclass(frozen=True, slots=True)
class Refitted:
    """base: trained on what lies before `since_ms`, validated on what follows until the cut;
    refitted: trained on, on everything before the cut."""

    base: Served
    since_ms: int
    refitted: Served


def refitted_model(
    log: Log,
    walk: Walk,
    folder: Path,
    console: Console,
    table: pl.DataFrame | None = None,
    **options: Any,
) -> Refitted:
    """What `tim4rec train` publishes at the cut; goes on from what `folder` holds.

    Args:
        table: of the items; None: nothing is learned of what they are.
        options: of `TrainingConfig`.
    """
    so_far = before(log, int(walk.borders[0]))
    dataset = with_features(build_dataset(so_far, PUBLISHED), table)
    assert dataset.cut_ms is not None
    config = training_config(dataset, **options)
    base = train(dataset, model_config(dataset), config, folder, console=console)
    if table is not None and base.model.content is not None:
        served = Served(base.model, dataset.item_ids)
        base.model.content = fit_new_items(
            so_far, served, base.model.content, table, dataset.cut_ms
        )
    every = with_features(every_row(so_far, PUBLISHED), table)
    console.print(f"refit: {every.n_items} items", highlight=False)
    result = refit(base.model, dataset.item_ids, every, config, folder, console=console)
    return Refitted(
        Served(base.model, dataset.item_ids),
        dataset.cut_ms,
        Served(result.model, every.item_ids),
    )


def before(log: Log, time_ms: int) -> Log:
    """What came before a moment."""
    return replace(log, frame=log.frame.filter(pl.col("time_ms") < time_ms))


def warm_start(
    trained: Served,
    until_ms: int,
    mixture: Mixture | None,
    log: Log,
    folder: Path,
    console: Console,
    **options: Any,
) -> tuple[Served, Mixture | None]:
    """What `tim4rec train --from` makes of a model that was trained on what came before `until_ms`,
    and of the mixture with it; goes on from what `folder` holds."""
    every = every_row(log, PUBLISHED, trained.item_ids)
    config = replace(training_config(every, **options), **WARM)
    model = trained.model
    run = WarmRun(
        [model], trained.item_ids, model.repeat_bias, until_ms - 1, REPLAY, config, WARM, folder,
        console,
    )  # fmt: skip
    share = share_held_out(log, until_ms - 1)
    if share is None:
        return Served(run.on(every).model, every.item_ids), mixture
    forward = replace(PUBLISHED, split="forward", validation_share=share)
    dataset = grown_dataset(log, forward, trained.item_ids)
    assert dataset.cut_ms is not None
    between, last = run.in_two_parts(dataset, every)
    parts = (
        Walked(model, trained.item_ids, until_ms),
        Walked(between.model, dataset.item_ids, dataset.cut_ms),
    )
    found = refit_mixture(log, *parts, start=mixture, seed=config.seed)
    return Served(last.model, every.item_ids), found or mixture

"""Towers: models trained apart, each with a seed of its own, and stacked into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from model import ModelConfig, TiM4Rec, stack
from model.towers import stacked_config
from training.dataset import Dataset
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.repeats import repeat_bias
from training.trainer import Result, TrainingConfig, train, validation_of


def train_towers(
    dataset: Dataset,
    model_config: ModelConfig,
    config: TrainingConfig,
    towers: int,
    folder: Path | None = None,
    *,
    console: Console | None = None,
) -> Result[TiM4Rec]:
    """As `train`, `towers` times; the result is the stack of their best weights.

    Its scores are the sums of theirs, so what one of them alone is wrong about counts less.

    Args:
        model_config: of one tower.
        config: its seed stands for the seeds towers * seed + (0 .. towers - 1).
        folder: keeps a checkpoint of each tower in `tower-N`.

    Returns:
        epochs and seconds of all together, the latest of the best epochs, and the validation
        NDCG@10 of the stack.

    Raises:
        ConfigError: towers of this architecture can't be stacked.
    """
    if towers == 1:
        return train(dataset, model_config, config, folder, console=console)
    stacked_config(model_config, towers)  # said before hours of training rather than after
    results = []
    for number in range(towers):
        seed = towers * config.seed + number
        if console is not None:
            console.print(f"tower {number + 1} of {towers}, seed {seed}", highlight=False)
        place = None if folder is None else folder / f"tower-{number}"
        results.append(
            train(dataset, model_config, replace(config, seed=seed), place, console=console)
        )
    model = stack([result.model for result in results])
    model.repeat_bias = repeat_bias(model, dataset)
    targets, seen = validation_of(config, dataset)
    asked = model.config.uses_request_time
    ranking = rank_targets(model, dataset.histories, targets, at_target_time=(asked,), top=0)
    ranks = getattr(ranking[asked], seen)
    return Result(
        model,
        sum(result.epochs for result in results),
        max(result.best_epoch for result in results),
        ranking_metrics(ranks)["NDCG@10"],
        sum(result.seconds for result in results),
    )

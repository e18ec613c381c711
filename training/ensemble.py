"""Ensembles: models trained apart, each with a seed of its own, and served as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from model import ModelConfig, TiM4Rec
from model.ensemble import combine, ensemble_config
from training.config import TrainingConfig
from training.dataset import Dataset
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.repeats import repeat_bias
from training.trainer import Result, train, validation_of


def train_ensemble(
    dataset: Dataset,
    model_config: ModelConfig,
    config: TrainingConfig,
    members: int,
    folder: Path | None = None,
    *,
    console: Console | None = None,
) -> Result[TiM4Rec]:
    """As `train`, `members` times; the result is the ensemble of their best weights.

    Its scores are the sums of theirs, so what one of them alone is wrong about counts less.

    Args:
        model_config: of one member.
        config: its seed stands for the seeds members * seed + (0 .. members - 1).
        folder: keeps a checkpoint of each member in `member-N`.

    Returns:
        epochs and seconds of all together, the latest of the best epochs, and the validation
        NDCG@10 of the ensemble.

    Raises:
        ConfigError: models of this architecture can't be an ensemble.
    """
    if members == 1:
        return train(dataset, model_config, config, folder, console=console)
    ensemble_config(model_config, members)  # said before hours of training rather than after
    results = []
    for number in range(members):
        seed = members * config.seed + number
        if console is not None:
            console.print(f"model {number + 1} of {members}, seed {seed}", highlight=False)
        place = None if folder is None else _member_folder(folder, number)
        results.append(
            train(dataset, model_config, replace(config, seed=seed), place, console=console)
        )
    model = combine([result.model for result in results])
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


def _member_folder(folder: Path, number: int) -> Path:
    begun = folder / f"tower-{number}"  # as an earlier version called it
    return begun if begun.exists() else folder / f"member-{number}"

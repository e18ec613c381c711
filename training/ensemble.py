"""Ensembles: models trained apart, each with a seed of its own, and served as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from model import ModelConfig, TiM4Rec
from model.ensemble import combine, ensemble_config
from training.config import TrainingConfig
from training.dataset import Dataset
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.refit import REFIT, refit
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
    Args and errors are those of `train_members`; the result is that of `ensemble_of`.
    """
    results = train_members(dataset, model_config, config, members, folder, console=console)
    return ensemble_of(results, dataset, config)


def train_members(
    dataset: Dataset,
    model_config: ModelConfig,
    config: TrainingConfig,
    members: int,
    folder: Path | None = None,
    *,
    console: Console | None = None,
) -> list[Result[TiM4Rec]]:
    """The models of an ensemble, or the one model that is to be served alone.

    Args:
        model_config: of one member.
        config: its seed stands for the seeds members * seed + (0 .. members - 1).
        folder: keeps a checkpoint there, or of each of several members in `member-N`.

    Raises:
        ConfigError: models of this architecture can't be an ensemble.
    """
    if members > 1:
        ensemble_config(model_config, members)  # said before hours of training rather than after
    results = []
    for number, own in enumerate(_member_configs(config, members)):
        if members > 1:
            _say(console, f"model {number + 1} of {members}, seed {own.seed}")
        place = folder
        if folder is not None and members > 1:
            place = _member_folder(folder, number)
        results.append(train(dataset, model_config, own, place, console=console))
    return results


def ensemble_of(
    results: Sequence[Result[TiM4Rec]], dataset: Dataset, config: TrainingConfig
) -> Result[TiM4Rec]:
    """The ensemble of trained members, with a repeat bias of its own; one alone is itself.

    Returns:
        epochs and seconds of all together, the latest of the best epochs, and the validation
        NDCG@10 of the ensemble.
    """
    if len(results) == 1:
        return results[0]
    model = combine([result.model for result in results])
    model.repeat_bias = repeat_bias(model, dataset)
    targets, seen = validation_of(config, dataset)
    asked = model.config.uses_request_time
    ranking = rank_targets(model, dataset.histories, targets, at_target_time=(asked,), top=0)
    ranks = getattr(ranking[asked], seen)
    return _together(results, model, ranking_metrics(ranks)["NDCG@10"])


def refit_members(
    members: Sequence[TiM4Rec],
    item_ids: Sequence[str],
    dataset: Dataset,
    config: TrainingConfig,
    folder: Path | None = None,
    *,
    recipe: Mapping[str, Any] = REFIT,
    console: Console | None = None,
) -> list[Result[TiM4Rec]]:
    """The members of an ensemble, or a model alone, each refitted with its own seed.

    Args and errors are those of `refit`.
    """
    refitted = []
    for number, own in enumerate(_member_configs(config, len(members))):
        if len(members) > 1:
            _say(console, f"model {number + 1} of {len(members)}")
        result = refit(
            members[number], item_ids, dataset, own, folder, recipe=recipe, console=console
        )
        refitted.append(result)
    return refitted


def refit_ensemble(
    members: Sequence[TiM4Rec],
    item_ids: Sequence[str],
    dataset: Dataset,
    config: TrainingConfig,
    folder: Path | None = None,
    *,
    repeat_bias: float,
    recipe: Mapping[str, Any] = REFIT,
    console: Console | None = None,
) -> Result[TiM4Rec]:
    """The ensemble of what `refit_members` makes on every row; one alone is itself.

    Args:
        repeat_bias: of the ensemble before, which stays.
    """
    _say(console, "refit on every row")
    refitted = refit_members(
        members, item_ids, dataset, config, folder, recipe=recipe, console=console
    )
    model = combine([result.model for result in refitted])
    model.repeat_bias = repeat_bias
    return _together(refitted, model, 0.0)


def _together(
    results: Sequence[Result[TiM4Rec]], model: TiM4Rec, best_ndcg: float
) -> Result[TiM4Rec]:
    return Result(
        model,
        sum(result.epochs for result in results),
        max(result.best_epoch for result in results),
        best_ndcg,
        sum(result.seconds for result in results),
    )


def _member_configs(config: TrainingConfig, members: int) -> list[TrainingConfig]:
    first = members * config.seed
    return [replace(config, seed=first + number) for number in range(members)]


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, highlight=False)


def _member_folder(folder: Path, number: int) -> Path:
    begun = folder / f"tower-{number}"  # as an earlier version called it
    return begun if begun.exists() else folder / f"member-{number}"

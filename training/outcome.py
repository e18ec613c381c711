"""What a training run has made of a log, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model import TiM4Rec
from model.live.mixture import Mixture
from model.times import iso
from training.comparison import Comparison
from training.config import TrainingConfig
from training.dataset import Dataset
from training.evaluation import ResultRow, evaluate_offline
from training.refit import REFIT
from training.trainer import Result
from training.warm_start import WarmStart


@dataclass(frozen=True, slots=True)
class Refit:
    """dataset: every row of the log; result: the model trained on it, which is served; recipe:
    against the training before."""

    dataset: Dataset
    result: Result[TiM4Rec]
    recipe: Mapping[str, Any] = field(default_factory=lambda: REFIT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A model trained on one part of a log and ranked on another, and then perhaps refitted.

    rows, comparison: of the model before its refit, on the targets `ranked`; none where nothing was
    set aside.
    mixture: fitted with that model, or of the parent. warm_start: None of a model trained from
    scratch.
    """

    name: str
    dataset: Dataset
    config: TrainingConfig
    members: int
    trained: Result[TiM4Rec]
    rows: Sequence[ResultRow]
    refit: Refit | None = None
    mixture: Mixture | None = None
    warm_start: WarmStart | None = None
    comparison: Comparison | None = None

    @classmethod
    def of(
        cls,
        name: str,
        dataset: Dataset,
        config: TrainingConfig,
        members: int,
        trained: Result[TiM4Rec],
        refit: Refit | None = None,
        mixture: Mixture | None = None,
        warm_start: WarmStart | None = None,
    ) -> Outcome:
        """Ranks the trained model."""
        targets = dataset.test if len(dataset.test) else dataset.validation
        rows: Sequence[ResultRow] = []
        comparison = None
        if len(targets):
            rows, whole = evaluate_offline(trained.model, dataset.histories, targets)
            comparison = Comparison.of(dataset, targets, whole[False].filtered)
        return cls(
            name, dataset, config, members, trained, rows, refit, mixture, warm_start, comparison
        )

    @property
    def model(self) -> TiM4Rec:
        """What is served."""
        return self.trained.model if self.refit is None else self.refit.result.model

    @property
    def ranked(self) -> Literal["test", "validation"]:
        """Whose figures `rows` are; those of validation have chosen the epoch."""
        return "test" if len(self.dataset.test) else "validation"

    def metrics(self) -> dict[str, Any]:
        """What an artefact's `metrics.json` says."""
        trained, rows = self.trained, [row.to_dict() for row in self.rows]
        found: dict[str, Any] = {
            "data": {"name": self.name, **self.dataset.describe()},
            "protocol": self.dataset.protocol.to_dict(),
            "training": self.config.to_dict(),
            "ensemble": self.members,
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "seconds": round(trained.seconds, 1),
            "step": "scratch",
            "parent": None,
        }
        if (warm := self.warm_start) is not None:
            found["step"], found["parent"] = "warm", warm.parent
            found["warm_start"] = {
                "since": None if warm.since_ms is None else iso(warm.since_ms),
                "new_targets": warm.new_targets,
                "replay": warm.replay,
                "own_mixture": warm.own_mixture,
            }
        newest = self.dataset if self.refit is None else self.refit.dataset
        if (until := newest.newest_ms()) is not None:
            found["until"] = iso(until)
        if len(self.dataset.validation):
            found["validation"] = {"NDCG@10": trained.best_ndcg}
        if self.ranked == "test":
            found["test"] = rows
        elif rows:
            found["validation"]["rows"] = rows
        if self.comparison is not None:
            found["comparison"] = self.comparison.to_dict()
        if self.refit is not None:
            found["refit"] = {
                "data": self.refit.dataset.describe(),
                "training": dict(self.refit.recipe),
                "seconds": round(self.refit.result.seconds, 1),
            }
        return found

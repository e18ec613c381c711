"""A warm start: a published model goes on, on what has come since and some of what was before.

Windows with a newer interaction are all taken, of the others a share, drawn anew each epoch, so
that the cost follows what is new and little is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from model import UNKNOWN_TIME, TiM4Rec
from model.ensemble import members_of
from training.config import TrainingConfig
from training.dataset import Dataset, Replay
from training.ensemble import ensemble_of, refit_ensemble, refit_members
from training.interactions import Log
from training.refit import REFIT
from training.trainer import Result

WARM: dict[str, Any] = REFIT | {"lr": 4e-3}
"""Against the training of the parent. At a refit's rate, a third as much is learned of what is new
(Amazon Beauty, YooChoose)."""

REPLAY = 0.25
"""Of the windows without a newer interaction."""

HELD_OUT, LEAST_HELD_OUT = 5_000, 2_000
"""Newer interactions that a mixture is fitted on, or a tenth of all where that is more; with fewer
than the least the parent's mixture is better than one of one's own."""

INHERITED = (
    "weight_decay", "label_smoothing", "loss", "negatives", "negatives_power", "targets",
    "max_len", "context", "validation_users", "validation_seen", "precision",
)  # fmt: skip
"""What a warm start takes from the training of its parent, where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What a model went on from, and on what.

    parent: the artefact's edition; since_ms: what is later is new, None: all is; new_targets: so
    many training targets are new; replay: the share of the other windows; own_mixture: whether one
    was fitted, or the parent's stays.
    """

    parent: str
    since_ms: int | None
    new_targets: int
    replay: float
    own_mixture: bool


def share_held_out(log: Log, since_ms: int | None) -> float | None:
    """The share of the log, its latest, that a mixture is to be fitted on.

    Returns:
        None where that would be too little, or a time is not known.
    """
    times = log.frame["time_ms"].to_numpy()
    if (times == UNKNOWN_TIME).any():
        return None
    new = len(times) if since_ms is None else int((times > since_ms).sum())
    held_out = min(new // 2, max(new // 10, HELD_OUT))
    return held_out / len(times) if held_out >= LEAST_HELD_OUT else None


def inherited(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parent's training that a warm start keeps.

    Raises:
        ValueError: `training` is not what a training has written.
    """
    found = metrics.get("training", {})
    if not isinstance(found, dict):
        raise ValueError("training must be an object")
    kept = {name: found[name] for name in INHERITED if name in found}
    try:
        TrainingConfig(**kept)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}") from None
    return kept


@dataclass(frozen=True, slots=True)
class WarmRun:
    """One warm start, resumed where it was interrupted.

    members: the models that go on, one or those of an ensemble; item_ids: those that they know, in
    their order; repeat_bias: of all together; since_ms: what is later is new, None: all is; replay:
    the share of the other windows; recipe: what in `config` is its own; folder: of the checkpoints.

    Errors are those of `train_model`.
    """

    members: Sequence[TiM4Rec]
    item_ids: Sequence[str]
    repeat_bias: float
    since_ms: int | None
    replay: float
    config: TrainingConfig
    recipe: Mapping[str, Any]
    folder: Path
    console: Console

    def on(self, dataset: Dataset) -> Result[TiM4Rec]:
        """Goes on with all of it; the repeat bias stays."""
        return refit_ensemble(
            self.members, self.item_ids, self._replayed(dataset, self.since_ms), self.config,
            self.folder, repeat_bias=self.repeat_bias, recipe=self.recipe, console=self.console,
        )  # fmt: skip

    def in_two_parts(
        self, dataset: Dataset, every: Dataset
    ) -> tuple[Result[TiM4Rec], Result[TiM4Rec]]:
        """Goes on with what lies before the cut of `dataset`, and then with what follows it.

        Returns:
            the model in between, with a repeat bias of its own, and the last one.
        """
        assert dataset.cut_ms is not None
        members = refit_members(
            self.members, self.item_ids, self._replayed(dataset, self.since_ms), self.config,
            self.folder, recipe=self.recipe, console=self.console,
        )  # fmt: skip
        between = ensemble_of(members, dataset, self.config)
        rest = replace(
            self,
            members=members_of(between.model),
            item_ids=dataset.item_ids,
            repeat_bias=between.model.repeat_bias,
            since_ms=dataset.cut_ms - 1,
        )
        return between, rest.on(every)

    def _replayed(self, dataset: Dataset, since_ms: int | None) -> Dataset:
        replay = None if since_ms is None else Replay(since_ms, self.replay)
        return replace(dataset, replay=replay)

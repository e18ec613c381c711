"""Defaults that depend on the data: what was found to be best on logs of its kind.

What was tried, with figures: benchmarks/quality.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from model import UNKNOWN_TIME, ModelConfig
from training.config import TrainingConfig
from training.dataset import Dataset, Protocol, build_dataset
from training.interactions import Log
from training.tables import InputError

CORE, REFITTED_CORE = 5, 2
"""Fewest interactions of users and items, in tables and in a model that is refitted."""

Recipe = Literal["full", "quick"]
"""`full` trains until validation gets no better, `quick` for a few epochs at a falling rate."""
QUICK: dict[str, Any] = {"schedule": "linear", "max_epochs": 5, "lr": 6e-3, "ema": 0.0}
"""On MovieLens-100K as accurate as 12 epochs of the full one, in a third of the time."""

SHORT = 20
"""Mean length below which a log's histories are short: they overfit sooner."""

CHANCE = 0.6
"""Agreement (`Dataset.tie_agreement`) below which the order of equal times tells nothing."""


def model_config(dataset: Dataset, recipe: Recipe = "full", **options: Any) -> ModelConfig:
    """An architecture for this data: its size, what the recipe says, and the given options."""
    dropout = 0.5 if _is_short(dataset) else 0.2
    # Few epochs do not overfit.
    chosen: dict[str, Any] = {"dropout": dropout / 2 if recipe == "quick" else dropout}
    if (gaps := dataset.gap_range_ms()) is not None:
        seconds = (gaps[0] / 1000, gaps[1] / 1000)
        # Asked within a second of an interaction, however coarse the log's times are.
        chosen |= {"gap_range_s": seconds, "request_range_s": (min(1.0, seconds[0]), seconds[1])}
    return ModelConfig(n_items=dataset.n_items, **(chosen | options))


def _is_short(dataset: Dataset) -> bool:
    """Whether histories are short."""
    return float(np.diff(dataset.histories.offsets).mean()) < SHORT


def split_log(log: Log, protocol: Protocol) -> tuple[Dataset, str | None]:
    """A log, split forward in time where it can be, else by leaving each user's last out.

    Returns:
        why it could not be, where it was not.

    Raises:
        InputError: it can be split in neither way.
    """
    try:
        return build_dataset(log, replace(protocol, split="forward")), None
    except InputError as error:
        return build_dataset(log, replace(protocol, split="leave-one-out")), str(error)


def training_config(dataset: Dataset, recipe: Recipe = "full", **options: Any) -> TrainingConfig:
    """How to train on this data: by that recipe, and the given options."""
    # As many times are hidden in training as are missing, so that missing ones tell nothing.
    missing = float((dataset.histories.times == UNKNOWN_TIME).mean())
    agreement = dataset.tie_agreement()
    chosen: dict[str, Any] = {
        "ema": 0.995, "item_init": "cooccurrence",
        "shuffle_ties": agreement is not None and agreement < CHANCE,
        "time_masking": round(missing, 2),
        # Items that are often had need less of what they are.
        "id_dropout": 0.2 if _is_short(dataset) else 0.05,
    }  # fmt: skip
    if recipe == "quick":
        chosen |= QUICK
    return TrainingConfig(**(chosen | options))

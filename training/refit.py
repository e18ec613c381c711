"""The last training before a model is published: shortly, on every row of its log.

Whatever is set aside to validate on is never trained on, and these are the newest interactions,
with the newest items. So a model that was trained and validated goes on from its weights, with the
vocabulary of the whole log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from model import TiM4Rec
from training.config import TrainingConfig
from training.content import feature_parts
from training.cooccurrence import cooccurrence_vectors
from training.dataset import Dataset, Protocol, build_dataset
from training.interactions import Log
from training.trainer import Result, train_model

REFIT: dict[str, Any] = {
    "schedule": "linear", "max_epochs": 2, "lr": 1e-3, "warmup": 10, "ema": 0.0,
    "item_init": "random",
}  # fmt: skip
"""Against the training before it. `random`: vectors stay as `warm_started` has them."""

RIDGE = 1e-3


def grown_dataset(log: Log, protocol: Protocol, known: Sequence[str]) -> Dataset:
    """A split log with a vocabulary of the items that a model knows, in its order, whether or not
    the log has them, and after them the others of the training part, sorted.

    Raises InputError as `build_dataset` does.
    """
    dataset = build_dataset(log, protocol)
    if not known:
        return dataset
    among = set(known)
    new = [item for item in dataset.item_ids if item not in among]
    return build_dataset(log, protocol, [*known, *new])


def every_row(log: Log, protocol: Protocol, known: Sequence[str] = ()) -> Dataset:
    """A log cored as the protocol says and trained on to the end of each history, without targets.

    Args and errors are those of `grown_dataset`.
    """
    dataset = grown_dataset(log, replace(protocol, split="leave-one-out"), known)
    none = dataset.test.take(np.empty(0, dtype=np.int64))
    return replace(
        dataset, train_ends=dataset.histories.offsets[1:].copy(), validation=none, test=none
    )


def refit(
    trained: TiM4Rec,
    item_ids: Sequence[str],
    dataset: Dataset,
    config: TrainingConfig,
    folder: Path | None = None,
    *,
    recipe: Mapping[str, Any] = REFIT,
    console: Console | None = None,
) -> Result[TiM4Rec]:
    """Trains a model on; its repeat bias stays as it is where nothing is validated on.

    Args:
        item_ids: those that the model knows, in its order.
        dataset: what is trained on.
        config: of the training before; `recipe` is what differs.
        folder: keeps a checkpoint in a folder of its own for each model that is refitted.

    Raises:
        CheckpointError, DivergedError: as `train_model`.
    """
    config = replace(config, **recipe)
    start = partial(warm_started, trained, item_ids, dataset, config.seed)
    # A checkpoint does not say which weights its run started from: its folder does.
    place = None if folder is None else folder / f"refit-{_digest(trained)}"
    return train_model(dataset, start, config, place, console=console)


@torch.no_grad()
def warm_started(trained: TiM4Rec, item_ids: Sequence[str], dataset: Dataset, seed: int) -> TiM4Rec:
    """A model for the items of `dataset` with the weights and the repeat bias of `trained`.

    The vectors of items that it lacks are what co-occurrence vectors say, by the linear map that
    takes those of the other items nearest to their trained ones; random where there is none.
    Shortening those of rare items was measured to lose new ones and to win no known one.

    Args:
        item_ids: those that `trained` knows, in its order.
    """
    model = TiM4Rec(replace(trained.config, n_items=dataset.n_items))
    model.repeat_bias = trained.repeat_bias
    place = {item: row for row, item in enumerate(item_ids, 1)}
    rows = torch.tensor([place.get(item, 0) for item in dataset.item_ids])
    kept = rows > 0
    known = trained.item_embedding.weight.cpu()
    old = known[rows]
    table = model.item_embedding.weight.clone()
    table[0] = known[0]
    if not kept.all():
        mapped, met = mapped_vectors(dataset, old, kept, seed)
        table[1:][met] = mapped[met]
        if dataset.features is not None and trained.content is not None:
            parts, described = feature_parts(dataset.features, trained.content)
            table[1:][described] = parts[described]
    table[1:][kept] = old[kept]
    model.load_state_dict(trained.state_dict() | {"item_embedding.weight": table})
    model.content = trained.content
    return model


def mapped_vectors(dataset: Dataset, old: Tensor, kept: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What co-occurrence says of the items' vectors: by the linear map that takes co-occurrence
    vectors nearest to the `old` ones (V, D) of the items that are `kept` (V).

    Returns:
        vectors (V, D), and (V) which items have one.
    """
    vectors, met = cooccurrence_vectors(dataset, old.shape[1], seed=seed)
    return vectors @ _linear_map(vectors[kept & met], old[kept & met]), met


def _linear_map(x: Tensor, y: Tensor) -> Tensor:
    """The least squares solution M of x M = y, with a ridge."""
    x, y = x.double(), y.double()
    ridge = RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    found: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return found


def _digest(model: TiM4Rec) -> str:
    found = hashlib.blake2b(digest_size=4)
    for value in model.state_dict().values():
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()

"""A training run's state in one file, written whole or not at all, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import Architecture, Recommender
from model.plain_file import open_plain
from model.strict_json import parse, shown
from model.tensor_file import write_tensors
from training.config import TrainingConfig
from training.dataset import Dataset


class CheckpointError(ValueError):
    """A checkpoint that can't be resumed; the message names the file and the way out."""


@dataclass
class Progress:
    """Where a run stands. epoch: epochs done; step: optimizer steps done."""

    run: str
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_ndcg: float = -1.0
    seconds: float = 0.0
    finished: bool = False


def fingerprint(dataset: Dataset, model_config: Architecture, config: TrainingConfig) -> str:
    """Names a run: what its weights depend on.

    More epochs or patience continue the same run, but where the rate falls until the last epoch.
    """
    settings = config.to_dict()
    for name in ("patience", "device", "kernels"):
        del settings[name]
    if config.schedule == "constant":
        del settings["schedule"], settings["max_epochs"]
    described = [model_config.to_dict(), settings, dataset.protocol.to_dict()]
    if dataset.replay is not None:
        described.append(asdict(dataset.replay))
    histories, features = dataset.histories, dataset.features
    arrays = [histories.offsets, histories.items, histories.times, dataset.train_ends]
    if features is None:
        del settings["id_dropout"]
    else:
        arrays += [features.hashes, features.offsets, features.places]
    digest = hashlib.blake2b(json.dumps(described).encode(), digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\n".join(dataset.item_ids).encode())
    return digest.hexdigest()


def save_checkpoint(
    path: Path,
    model: Recommender,
    average: Recommender | None,
    best: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Replaces `path` atomically: after a crash it holds the old run state or the new one.

    Args:
        average: holds the average of the weights; None where there is none.

    Raises:
        OSError: it can't be written, and the old one stays.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"optimizer/{names[id(parameter)]}/{key}"] = torch.as_tensor(value)
    part = path.with_name(path.name + ".part")
    write_tensors(part, tensors, {"progress": json.dumps(asdict(progress))})
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(
    path: Path,
    model: Recommender,
    average: Recommender | None,
    optimizers: Sequence[torch.optim.Optimizer],
    run: str,
) -> tuple[dict[str, Tensor], Progress]:
    """Sets the models and `optimizers` to the saved state; returns the best weights and progress.

    Raises CheckpointError if the file is damaged, of a run with other data or settings, or does not
    fit the models.
    """
    try:
        open_plain(path).close()
        with safe_open(path, "pt") as file:
            progress = _progress(parse(file.metadata()["progress"]))
            if progress.run != run:
                raise CheckpointError(
                    f"{path} belongs to a run with other data or settings; "
                    "start over with --fresh, or choose another --out"
                )
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _require_fitting(saved, model, average)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); start over with --fresh"
        ) from error

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in saved.items()
            if name.startswith(prefix)
        }

    model.load_state_dict(part("model/"))
    if average is not None:
        average.load_state_dict(part("average/"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            state = part(f"optimizer/{names[id(parameter)]}/")
            if state:
                optimizer.state[parameter] = {
                    # The step count stays where the optimizer keeps it: by the parameter if
                    # fused, a Python int if sparse.
                    key: value.to(parameter.device) if value.is_floating_point() else value.item()
                    for key, value in state.items()
                }
    return part("best/"), progress


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
}  # fmt: skip


def _progress(found: dict[str, Any]) -> Progress:
    """Raises ValueError where a value is of another type."""
    progress = Progress(**found)
    for field in fields(Progress):
        value = getattr(progress, field.name)
        if type(value) not in _KINDS[str(field.type)]:
            raise ValueError(f"{field.name} is {reprlib.repr(value)}")
    return progress


def _require_fitting(
    saved: dict[str, Tensor], model: Recommender, average: Recommender | None
) -> None:
    """Raises ValueError unless each tensor is finite and of the kind of what it goes into."""
    weights = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    whole = ("model", "best") if average is None else ("model", "average", "best")
    missing = {f"{part}/{name}" for part in whole for name in weights} - saved.keys()
    if missing:
        raise ValueError(f"{min(missing)} is missing")
    for full_name, tensor in saved.items():
        part, _, name = full_name.partition("/")
        if part == "optimizer":
            name = name.rpartition("/")[0]
        kind = (tensor.shape, tensor.dtype)
        fits = name in weights and (
            kind == weights[name] or (part == "optimizer" and tensor.dim() == 0)
        )
        if not fits or part not in (*whole, "optimizer") or not bool(tensor.isfinite().all()):
            raise ValueError(f"{shown(full_name)} does not fit, or is not finite")

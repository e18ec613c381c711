"""A training run's state in one file, written whole or not at all, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import Recommender


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
    save_file(
        {name: value.detach().contiguous().cpu() for name, value in tensors.items()},
        part,
        {"progress": json.dumps(asdict(progress))},
    )
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

    Raises CheckpointError if the file is damaged, or of a run with other data or settings.
    """
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            if progress.run != run:
                raise CheckpointError(
                    f"{path} belongs to a run with other data or settings; "
                    "start over with --fresh, or choose another --out"
                )
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error}); start over with --fresh"
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

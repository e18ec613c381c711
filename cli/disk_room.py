"""Whether the disk has room for what training is going to write, before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from cli.console import CommandError
from model import ModelConfig, TiM4Rec

_COPIES = 4
"""Of a model in one checkpoint, at least: as it is, at its best, and two of the optimizer's."""
_BYTES = 4


def require_room(folder: Path, architecture: ModelConfig, runs: int) -> None:
    """Raises CommandError where the checkpoints of so many runs, of a model each, do not fit beside
    an artefact's folder. They are kept until all runs are done, and a new one is whole before it
    replaces the old."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in TiM4Rec(architecture).parameters())
    needed = (runs + 1) * _COPIES * _BYTES * size
    there = folder.absolute()
    checkpoints = there.with_name(f"{there.name}.training")
    kept = sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file())
    place = next(parent for parent in there.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free + kept:
        raise CommandError(
            f"--out {folder}: training needs {_megabytes(needed - kept)} there at least, and "
            f"{_megabytes(free)} are free: make room, or choose a folder on another disk"
        )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"

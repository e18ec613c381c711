"""A checkpoint of the official implementation, read without running anything of it.

RecBole's trainer pickles its whole Config object beside the weights. It is read with torch's
weights-only unpickler and inert stand-ins for all that is not torch's, so that no code of the
checkpoint is ever run or imported.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cli.console import CommandError
from cli.official_config import settings_of
from model.plain_file import open_plain
from model.strict_json import shown

_LONGEST_REASON = 300  # characters of what torch says
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Foreign:
    """Stands in for any class or function of a checkpoint: takes all arguments, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        self.state: object = None

    def __repr__(self) -> str:
        return "an object"

    def __setstate__(self, state: object) -> None:
        self.state = state


@dataclass(frozen=True)
class Checkpoint:
    """What is used of a checkpoint; `settings` are empty where it carries no config."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    epoch: int | None
    sha256: str

    @property
    def n_items(self) -> int:
        return self.weights["item_embedding.weight"].shape[0] - 1


def read_checkpoint(path: Path) -> Checkpoint:
    """Weights and settings of a file that `torch.save` wrote; nothing in it is executed.

    Raises CommandError where it is no such file, or holds no weights of a TiM4Rec model.
    """
    try:
        with open_plain(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            _require_stored(file)
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(Foreign, name) for name in foreign]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in every way there is
        raise CommandError(
            f"{path}: not readable as a torch checkpoint: {_reason(error)}"
        ) from None
    if not isinstance(content, Mapping):
        raise CommandError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping) or "item_embedding.weight" not in weights:
        raise CommandError(f"{path}: no state_dict with item_embedding.weight: not a TiM4Rec model")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CommandError(f"{path}: {shown(name)} is not a floating-point tensor")
        if not all(end.float().isfinite() for end in tensor.detach().aminmax()):
            raise CommandError(
                f"{path}: {shown(name)} has values that are not finite: training diverged"
            )
    if weights["item_embedding.weight"].dim() != 2 or len(weights["item_embedding.weight"]) < 2:
        raise CommandError(f"{path}: item_embedding.weight has no items")
    epoch = content.get("epoch")
    return Checkpoint(
        settings=settings_of(_config_of(content.get("config")), path),
        weights=dict(weights),
        epoch=epoch if isinstance(epoch, int) and 0 <= epoch < 2**63 else None,
        sha256=sha256,
    )


def _require_stored(file: BinaryIO) -> None:
    """Raises ValueError where a checkpoint's parts take more memory than its file has bytes: torch
    writes them one after the other, and never compressed."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("a part of it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its parts overlap")


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that are all there: one may be large by strides alone."""
    return (
        isinstance(value, Tensor)
        and value.dtype in _DTYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and 0 < value.nbytes <= value.untyped_storage().nbytes()
    )


def _reason(error: Exception) -> str:
    """One line; of torch's own pages only what went wrong, not its advice to trust the file."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "weights_only" in lines[0]:
        lines = lines[-2:]
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__


def _config_of(config: object) -> Mapping[str, Any]:
    """RecBole's Config keeps what it settled on in `final_config_dict`."""
    if isinstance(config, Foreign):
        config = config.state
    if isinstance(config, Mapping):
        final = config.get("final_config_dict", config)
        if isinstance(final, Mapping):
            return final
    return {}

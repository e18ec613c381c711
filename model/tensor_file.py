"""Tensors in a file, as safetensors has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_NUMBER = re.compile(r"\(os error (\d+)\)")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Writes them, with `about` in the file's head.

    Raises:
        OSError: with the file's name, for instance because the disk is full. What was written is
            removed.
    """
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, about)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        number = _NUMBER.search(str(error))  # the library keeps nothing else of it
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error

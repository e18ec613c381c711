"""The device that a command computes on, and the kernels there."""

from __future__ import annotations

import torch

from cli.console import CommandError
from model.kernels import KernelChoice, KernelsUnavailable, choose
from training import parallel


def choose_device(name: str) -> str:
    """`auto` is this process's CUDA device, or the CPU. Raises CommandError for an unusable one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local = parallel.local_rank()
    if name == "cuda" and local is not None:
        name = f"cuda:{local}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {name} can't be used: {reason}") from None
    return name


def require_kernels(kernels: KernelChoice, device: str) -> None:
    """Raises CommandError where they were asked for and can't run there."""
    try:
        if kernels == "triton":
            choose("triton", device)
    except KernelsUnavailable as error:
        raise CommandError(f"--kernels triton: {error}") from None

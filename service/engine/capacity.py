"""How many users' states a process keeps on its device."""

from __future__ import annotations

import torch

from model.state import StateLayout

ON_CPU = 16_384
SHARE = 0.9
"""Of a GPU's free memory; the rest is for what batches need in between."""


def pool_rows(asked: int | None, layout: StateLayout, device: torch.device, models: int = 1) -> int:
    """The rows of a pool: what was asked for, or what is usual on this device; `models`: as many
    may be opened one beside the other."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return rows_within(free, layout, models)


def rows_within(free: int, layout: StateLayout, models: int = 1) -> int:
    """How many states the pool's share of so many bytes holds, at least one."""
    return max(1, int(SHARE / models * free) // layout.nbytes())

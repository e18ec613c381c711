"""How many users' states a process keeps on its device."""

from __future__ import annotations

import torch

from model.state import StateLayout

ON_CPU = 16_384
SHARE = 0.9
"""Of a GPU's free memory; the rest is for what batches need in between."""
SHARE_OF_TWO = 0.45
"""The same where another model may be opened beside this one."""


def pool_rows(
    asked: int | None, layout: StateLayout, device: torch.device, share: float = SHARE
) -> int:
    """The rows of a pool: what was asked for, or what is usual on this device."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    return rows_within(free, layout, share)


def rows_within(free: int, layout: StateLayout, share: float = SHARE) -> int:
    """How many states the pool's share of so many bytes holds, at least one."""
    return max(1, int(share * free) // layout.nbytes())

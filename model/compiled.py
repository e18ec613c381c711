"""Functions that Numba compiles for a CPU.

The compiled code is kept beside the function's file, or where `NUMBA_CACHE_DIR` says, until that
file changes: what other files define must come to it as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Function = Callable[..., Any]

# Sums may be taken in another order, or they would be as slow as their longest chain.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}

part: Callable[[Function], Function] = njit(**_OPTIONS)
"""What only compiled functions of the same file call."""


def compiled(function: Function) -> Function:
    """Compiled at its first call, without Python's lock, and kept on disk where that can be."""
    try:
        return njit(cache=True, **_OPTIONS)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder that could be written to
        return part(function)

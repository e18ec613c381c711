"""mamba-ssm's Triton kernels without the rest of that package.

`mamba_ssm` as a package imports a compiled CUDA extension, language models and transformers; its
Triton kernels need none of it. So they are imported from under a bare package of that name, and
the extra `gpu` needs no CUDA compiler. Nothing else in this code base knows how mamba-ssm is made.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import Tensor


def missing_package() -> str | None:
    """What the kernels need and is not installed; None: all is there."""
    for package in ("triton", "mamba_ssm", "einops"):
        if importlib.util.find_spec(package) is None:
            return package
    return None


def import_kernels() -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """`mamba_chunk_scan_combined` and `selective_state_update`, which compute in float32 and in one
    order of sums from here on."""
    with _bare_package():
        # Of several configurations the kernels then take the one that needs least, which is
        # right for our small heads, and no atomic additions.
        import_module("mamba_ssm.utils.determinism").set_deterministic_mode(True)
        import_module("triton").knobs.language.fp32_default = "ieee"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about that choice of a configuration
            combined = import_module("mamba_ssm.ops.triton.ssd_combined")
            update = import_module("mamba_ssm.ops.triton.selective_state_update")
    return combined.mamba_chunk_scan_combined, update.selective_state_update


@contextmanager
def _bare_package() -> Iterator[None]:
    if "mamba_ssm" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("mamba_ssm is not installed")
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    try:
        yield
    finally:
        del sys.modules["mamba_ssm"]  # who imports it by itself gets all of it

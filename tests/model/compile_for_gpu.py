"""Compiles every kernel that a model's training and serving launch for a GPU that is not there.

`python tests/model/compile_for_gpu.py [own]` prints a line for each; `own`: mamba-ssm's left out.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from model import ModelConfig, TiM4Rec
from model.device_stepper import DeviceStepper
from model.kernels import Kernels

H200 = GPUTarget("cuda", 90, 32)
seen: set[str] = set()
launch = JITFunction.run


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    started = time.perf_counter()
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    if kernel.hash not in seen:
        seen.add(kernel.hash)
        took = time.perf_counter() - started
        size = len(kernel.asm["cubin"])
        print(f"{self.fn.__name__}: {size} bytes, {kernel.metadata.shared} B shared, {took:.1f} s")
    return kernel


def main(own: bool) -> None:
    torch.set_num_threads(1)
    torch.cuda.device = lambda index: nullcontext()  # type: ignore[misc, assignment]
    found = SimpleNamespace(multi_processor_count=132)
    torch.cuda.get_device_properties = lambda device: found  # type: ignore[assignment]
    JITFunction.run = compile_only
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device=0: 0,
            get_current_target=lambda: H200,
            get_device_interface=lambda: torch.cuda,
        )
    )
    kernels = Kernels()
    if own:
        kernels.step = lambda x, *others: torch.zeros_like(x)  # type: ignore[method-assign]
    others = ({"gap_mix": "product", "activation": "silu"}, {"time": "none"})
    for options in ({},) if own else ({}, *others):
        model = TiM4Rec(ModelConfig(n_items=50, dropout=0.0, **options))  # type: ignore[arg-type]
        with torch.inference_mode():
            stepper = DeviceStepper(model, model.new_state(40), kernels, graphs=False)
            for users in (16,) if own else (1, 16):
                stepper.step(np.arange(users), np.ones(users, int), np.ones(users, int))
                stepper.query(*stepper.send(np.arange(users), np.ones(users, int)))
    if own:
        return
    model = TiM4Rec(ModelConfig(n_items=50, dropout=0.0)).use(kernels)
    items = torch.ones(2, 200, dtype=torch.int64)
    for lower in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            out = model(items, items, sequence_BL=torch.zeros_like(items))
        out.float().sum().backward()
    with torch.no_grad():
        model.prefill(items, items, items[:, 0] * 200, model.new_state(2))


if __name__ == "__main__":
    main("own" in sys.argv)

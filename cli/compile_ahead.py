"""Compiles what a service needs first, before it starts: `python -m cli.compile_ahead`.

Numba takes ten seconds for it on one core, which `make run` has to spare while it gets the data.
"""

from __future__ import annotations

import numpy as np

from model import ModelConfig, TiM4Rec
from model.compiled_stepper import CompiledStepper
from service.catalogue import numba_top
from service.http import json_shape


def compile_all() -> None:
    smallest = TiM4Rec(ModelConfig(n_items=1)).eval()
    CompiledStepper(smallest, smallest.new_state(1)).prepare(1)
    numba_top.top(np.zeros((1, 2), np.float32), [np.zeros(0, np.int32)], None, 0.0, [1])
    json_shape.warm()


if __name__ == "__main__":
    compile_all()

"""Compiles the step of models, before one is there: `python -m cli.compile_step`.

Numba takes ten seconds for it on one core, which `make run` has to spare while it gets the data.
"""

from __future__ import annotations

from model import ModelConfig, TiM4Rec
from model.compiled_stepper import CompiledStepper

if __name__ == "__main__":
    smallest = TiM4Rec(ModelConfig(n_items=1)).eval()
    CompiledStepper(smallest, smallest.new_state(1)).prepare(1)

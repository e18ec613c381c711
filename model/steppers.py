"""Which stepper a model has on its device."""

from __future__ import annotations

from model.compiled_stepper import CompiledStepper
from model.device_stepper import DeviceStepper
from model.state import State
from model.stepper import Stepper, TorchStepper
from model.tim4rec import TiM4Rec


def open_stepper(model: TiM4Rec, states: State) -> Stepper:
    """Of the pool `states`, on the model's device and by its kernels, if it has any."""
    if model.kernels is not None:
        return DeviceStepper(model, states, model.kernels, graphs=model.device.type == "cuda")
    if model.steppable and model.device.type == "cpu":
        return CompiledStepper(model, states)
    return TorchStepper(model, states)

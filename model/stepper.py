"""Steps and read-outs of the users of a pool of states: what all ways to compute them offer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.recommender import Recommender
from model.state import State

Ints = NDArray[np.int64]

FEW_STEPS = 8
"""Where a step of one user costs as much as one of many, a row that lacks more interactions than
this has them in one pass."""


class Stepper(Protocol):
    """Steps of the users of a pool, in place. One thread at a time may use it.

    Attributes:
        most_steps: a row that lacks more interactions has them sooner by `prefill`; None: never.
        in_microseconds: a few steps take less than a change of threads.
    """

    most_steps: int | None
    in_microseconds: bool

    def prepare(self, users: int) -> None:
        """Makes what batches of up to so many users need, so that none waits for it."""

    def step(self, slots: Ints, items: Ints, times: Ints) -> None:
        """Moves rows on by interactions; what may wait until `send`.

        Args:
            slots: (N) each interaction's row of the pool.
            items, times: (N) as for `TiM4Rec.step`; those of one row in their order.
        """

    def send(self, *arrays: Ints) -> list[Tensor]:
        """Takes the steps that wait; the arrays on the device, in the same transfer."""

    def query(self, slots: Tensor, request_times: Tensor) -> Tensor:
        """What `TiM4Rec.query` says of these rows, asked for at those times: (B, D).

        Args:
            slots, request_times: (B) int64 on the device; `send` brings them there.
        """

    def settle(self) -> None:
        """Returns when every step has been taken.

        Raises:
            RuntimeError: the device failed.
        """

    def forget(self) -> None:
        """Drops the steps that wait."""


class TorchStepper:
    """A `Stepper` by the model's own `step` and `query`, for any model on any device."""

    most_steps: int | None = FEW_STEPS
    in_microseconds = False

    def __init__(self, model: Recommender, states: State) -> None:
        self._model, self._states = model, states

    def prepare(self, users: int) -> None:
        pass

    def step(self, slots: Ints, items: Ints, times: Ints) -> None:
        for once in rounds(slots):
            index, item, at = self.send(slots[once], items[once], times[once])
            self._states.write(index, self._model.step(item, at, self._states.rows(index)))

    def send(self, *arrays: Ints) -> list[Tensor]:
        return [torch.from_numpy(array).to(self._model.device) for array in arrays]

    def query(self, slots: Tensor, request_times: Tensor) -> Tensor:
        return self._model.query(self._states.rows(slots), request_times)

    def settle(self) -> None:
        pass

    def forget(self) -> None:
        pass


def rounds(slots: Ints) -> list[Ints]:
    """Places of `slots` in which each row stands once: first its first ones, then its second."""
    order = np.argsort(slots, kind="stable")
    begins = np.flatnonzero(np.diff(slots[order], prepend=-1))
    counts = np.diff(begins, append=len(slots))
    turn = np.empty(len(slots), np.int64)
    turn[order] = np.arange(len(slots)) - np.repeat(begins, counts)
    return [np.flatnonzero(turn == number) for number in range(int(counts.max(initial=0)))]

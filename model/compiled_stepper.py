"""A model's steps and read-out on a CPU, in place on the rows of a pool.

What is computed, `TiM4Rec.step` and `TiM4Rec.query` say; `model/numba_step.py` is the code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from model import numba_step
from model.gaps import FIRST, N_SPECIAL, UNKNOWN, UNKNOWN_TIME, ZERO, GapGrid
from model.layers import FACTOR_SPAN, MAX_DECAY, FeedForward
from model.numba_step import Floats, Grid, Ints, Options, Weights
from model.state import State
from model.tim4rec import Block, TiM4Rec


class CompiledStepper:
    """A `Stepper` on a CPU, with the weights that the model has now; it runs without Python's lock.

    Args:
        states: the pool, whose parts are never replaced, in the model's precision.

    Raises:
        TypeError: the model has no step of constant cost.
    """

    most_steps: int | None = None
    in_microseconds = True

    def __init__(self, model: TiM4Rec, states: State) -> None:
        if not model.steppable:
            raise TypeError("a `sequence` model has no step of constant cost")
        pool = {name: part.numpy() for name, part in states.parts.items()}
        self._ends = pool["out"], pool["last_time"]
        self._pool = pool["h"], pool["conv"], *self._ends, pool["count"]
        self._weights, self._options = _weights(model), _options(model)

    def prepare(self, users: int) -> None:
        """Compiles both, or reads what was compiled before."""
        none = np.empty(0, np.int64)
        self.step(none, none, none)
        self.query(*self.send(none, none))

    def step(self, slots: Ints, items: Ints, times: Ints) -> None:
        events = (np.ascontiguousarray(part, np.int64) for part in (slots, items, times))
        numba_step.step(self._weights, self._options, *self._pool, *events)

    def send(self, *arrays: Ints) -> list[Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def query(self, slots: Tensor, request_times: Tensor) -> Tensor:
        asked = (np.ascontiguousarray(part, np.int64) for part in (slots, request_times))
        found: Floats = numba_step.query(self._weights, self._options, *self._ends, *asked)
        return torch.from_numpy(found)

    def settle(self) -> None:
        pass  # no step waits

    def forget(self) -> None:
        pass


def _weights(model: TiM4Rec) -> Weights:
    c, weight = model.config, model.item_embedding.weight
    groups, d, nothing = c.n_groups, c.d_model, weight.new_zeros(0, 0)

    def of_blocks(part: Callable[[Block], Tensor]) -> Floats:
        return _array(torch.stack([part(block) for block in model.blocks]))

    def of_groups(linear: nn.Linear, scale: Tensor | None = None) -> Tensor:
        """(G, inputs, outputs)."""
        whole = torch.unflatten(linear.weight, 0, (groups, -1)).transpose(1, 2)
        return whole if scale is None else whole * scale.reshape(groups, -1, 1)

    def vectors(block: Block) -> Tensor:
        ssd, ffn = block.ssd, block.ffn
        rows: list[Tensor] = [ssd.out_proj.bias, ssd.out_norm.weight, ssd.out_norm.bias]
        if isinstance(ffn, FeedForward):
            rows += [ffn.fc2.bias, ffn.norm.weight, ffn.norm.bias]
        return torch.stack(rows)

    def heads(block: Block) -> Tensor:
        A = -torch.exp(block.ssd.A_log)
        return torch.stack([block.ssd.dt_bias, A, MAX_DECAY / -A, block.ssd.D])

    def of_network(part: Callable[[FeedForward], Tensor], empty: tuple[int, ...]) -> Floats:
        return of_blocks(
            lambda b: part(b.ffn) if isinstance(b.ffn, FeedForward) else weight.new_zeros(empty)
        )

    tables = [model.gap_embedding, *(block.ssd.gap_table for block in model.blocks)]
    found: list[Tensor] = [table.weight for table in tables if table is not None]
    request, request_norm = nothing, weight.new_zeros(2, 0)
    if c.uses_request_time:
        scale, shift = model.request_table.weight.chunk(2, -1)
        request = torch.cat([1 + scale, shift], 1)
        request_norm = torch.stack([model.request_norm.weight, model.request_norm.bias])
    return Weights(
        items=_array(weight),
        in_norm=_array(torch.stack([model.in_norm.weight, model.in_norm.bias])),
        gaps=_knots(torch.cat(found, 1) if found else nothing),
        request=_knots(request),
        request_norm=_array(request_norm),
        project=of_blocks(lambda b: of_groups(b.ssd.in_proj)),
        project_bias=of_blocks(lambda b: b.ssd.in_proj.bias),
        taps=of_blocks(lambda b: torch.cat([b.ssd.conv.weight.T, b.ssd.conv.bias[None]])),
        heads=of_blocks(heads),
        out=of_blocks(lambda b: of_groups(b.ssd.out_proj, b.ssd.norm.weight)),
        up=of_network(lambda ffn: of_groups(ffn.fc1), (groups, d // groups, 0)),
        up_bias=of_network(lambda ffn: ffn.fc1.bias, (0,)),
        down=of_network(lambda ffn: of_groups(ffn.fc2), (groups, 0, d // groups)),
        vectors=of_blocks(vectors),
    )


def _options(model: TiM4Rec) -> Options:
    c = model.config
    mixed = model.blocks[0].ssd.gap_table is not None
    return Options(
        groups=c.n_groups,
        embedded=0 if model.gap_embedding is None else c.d_model,
        mixed=mixed,
        product=mixed and c.gap_mix == "product",
        span=FACTOR_SPAN,
        residual=model.blocks[0].ssd.residual,
        hardswish=c.activation == "hardswish",
        norm_eps=c.norm_eps,
        ffn_eps=c.ffn_norm_eps,
        gaps=_grid(model.gap_grid),
        request=_grid(model.request_grid if c.uses_request_time else model.gap_grid),
    )


def _grid(grid: GapGrid) -> Grid:
    low, high = (float(end) for end in grid.range_s)
    return Grid(low, high, grid.first_knot, UNKNOWN_TIME, FIRST, UNKNOWN, ZERO, N_SPECIAL)


def _knots(table: Tensor) -> Floats:
    """Each row of a table, and what leads from it to the next."""
    if not len(table):
        return _array(table)
    following = torch.cat([table[1:], table[-1:]])
    return _array(torch.cat([table, following - table], 1))


def _array(weight: Tensor) -> Floats:
    return weight.detach().contiguous().numpy()

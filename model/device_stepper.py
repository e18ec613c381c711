"""A model's step and read-out on a GPU, in place in a pool of states, with few and fused kernels.

What is computed, `TiM4Rec.step` and `TiM4Rec.query` say; `model.compiled_stepper` does the same on
a CPU. Steps wait for the next `send`, which brings everything to the device in one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.gaps import GapGrid
from model.graphs import LARGEST, Graphs, Run, size_for
from model.groups import GroupedLayerNorm, GroupedLinear
from model.kernels import Kernels
from model.layers import FACTOR_SPAN, MAX_DECAY, FeedForward, activation
from model.state import State
from model.stepper import FEW_STEPS, Ints, rounds
from model.tim4rec import Block, TiM4Rec


class DeviceStepper:
    """A `Stepper` with the weights that the model has now, in float32.

    Args:
        states: the pool, whose parts are never replaced.
        graphs: replay CUDA graphs, which needs a GPU; False: launch each kernel.

    Raises:
        TypeError: the model has no step of constant cost.
    """

    most_steps: int | None = FEW_STEPS
    in_microseconds = False

    def __init__(
        self, model: TiM4Rec, states: State, kernels: Kernels, *, graphs: bool = True
    ) -> None:
        if not model.steppable:
            raise TypeError("a `sequence` model has no step of constant cost")
        c = self._config = model.config
        self._triton: Any = import_module("model.triton_step")
        self._pool, self._device = states.parts, model.device
        self._items, self._in_norm = model.item_embedding.weight.detach(), _Norm(model.in_norm)
        self._grid = model.gap_grid
        mixing = [block.ssd.gap_table for block in model.blocks]
        tables = [table.weight for table in (model.gap_embedding, *mixing) if table is not None]
        self._gaps = torch.cat([*tables], 1).detach() if tables and c.time == "causal" else None
        self._embedded = self._gaps is not None and model.gap_embedding is not None
        mixed = self._gaps is not None and mixing[0] is not None
        self._mixes = c.n_layers * c.n_heads if mixed else 0
        self._layers = [
            _Layer(block, self._pool, i, kernels, mixed, self._triton)
            for i, block in enumerate(model.blocks)
        ]
        self._request: tuple[GapGrid, Tensor, _Norm] | None = None
        if c.uses_request_time:
            table = model.request_table.weight.detach()
            self._request = model.request_grid, table, _Norm(model.request_norm)
        # Triton launches on the current device, which may be another.
        on_gpu = self._device.type == "cuda"
        self._here: Callable[[], AbstractContextManager[object]]
        self._here = partial(torch.cuda.device, self._device) if on_gpu else nullcontext
        self._waiting: list[Ints] = []
        self._owner = np.zeros(states.batch, np.int32)
        self._pinned = torch.empty(0, dtype=torch.int64)
        self._step: Run = self._step_rows
        self._query: Run = self._query_rows
        if graphs:
            self._step = Graphs(self._step_rows, 3, self._device)
            self._query = Graphs(self._query_rows, 2, self._device)

    def prepare(self, users: int) -> None:
        with self._here():
            for run in (self._step, self._query):
                if isinstance(run, Graphs):
                    run.prepare(min(users, LARGEST))

    def step(self, slots: Ints, items: Ints, times: Ints) -> None:
        order = np.arange(len(slots), dtype=np.int32)
        self._owner[slots] = order
        events = np.stack([slots, items, times])
        if np.array_equal(self._owner[slots], order):  # each row once
            self._waiting.append(events)
        else:
            self._waiting += [events[:, once] for once in rounds(slots)]

    def send(self, *arrays: Ints) -> list[Tensor]:
        waiting, self._waiting = self._waiting, []
        parts = [*waiting, *arrays]
        if not parts:
            return []
        sent = self._upload([part.ravel() for part in parts])
        pieces = torch.split(sent, [part.size for part in parts])
        on_device = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
        for rows in on_device[: len(waiting)]:
            self.take(rows)
        return on_device[len(waiting) :]

    def take(self, rows: Tensor) -> None:
        """A step, at once: (3, B) int64 on the device, slots (each once), items and times."""
        with self._here():
            for piece in torch.split(rows, LARGEST, 1):
                self._step(piece)

    def query(self, slots: Tensor, request_times: Tensor) -> Tensor:
        rows = torch.stack([slots, request_times])
        pieces = torch.split(rows, LARGEST, 1)
        found = []
        with self._here():
            for piece in pieces:
                part = self._query(piece)
                assert part is not None
                found.append(part if len(pieces) == 1 else part.clone())
        return found[0] if len(pieces) == 1 else torch.cat(found)

    def forget(self) -> None:
        self._waiting = []

    def settle(self) -> None:
        self.send()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _upload(self, parts: Sequence[Ints]) -> Tensor:
        if self._device.type != "cuda":
            return torch.from_numpy(np.concatenate(parts))
        count = sum(map(len, parts))
        # Before it is written anew: the last transfer may still read it.
        torch.cuda.current_stream(self._device).synchronize()
        if len(self._pinned) < count:
            self._pinned = torch.empty(size_for(count), dtype=torch.int64, pin_memory=True)
        np.concatenate(parts, out=self._pinned[:count].numpy())
        return self._pinned[:count].to(self._device, non_blocking=True)

    # -- what the graphs are made of -----------------------------------------------------

    def _step_rows(self, rows: Tensor) -> None:
        """Rows (3, B): slots, items, times."""
        c, batch = self._config, rows.shape[1]
        slots, items, times = rows
        x = self._items.new_empty(batch, c.d_model)
        mix = self._items.new_empty(batch, self._mixes)
        norm = self._in_norm
        self._triton.enter[(batch,)](
            slots, items, times, self._pool["last_time"], self._pool["count"],
            self._items, self._gaps, norm.weight, norm.bias, x, mix,
            *self._grid.range_s, self._grid.first_knot, self._grid.rows, norm.eps,
            GROUP=norm.group, GROUPS=c.n_groups, BLOCK=size_for(norm.group),
            EMBEDDED=self._embedded, MIXES=self._mixes, BLOCK_MIXES=size_for(self._mixes or 1),
            FACTOR=c.gap_mix == "factor", SPAN=FACTOR_SPAN, num_warps=1,
        )  # fmt: skip
        for i, layer in enumerate(self._layers):
            last = i == len(self._layers) - 1
            x = layer(slots, x, mix[:, i * c.n_heads :], self._pool["out"] if last else None)

    def _query_rows(self, rows: Tensor) -> Tensor:
        """Rows (2, B): slots, times; what the first says nothing of is zero."""
        out = self._pool["out"]
        query = out.new_zeros(rows.shape[1], out.shape[1])
        grid, table, norm = self._request or (self._grid, None, self._in_norm)
        self._triton.read_out[(rows.shape[1],)](
            *rows, self._pool["last_time"], out, table, norm.weight, norm.bias, query,
            out.stride(0), *grid.range_s, grid.first_knot, grid.rows, norm.eps,
            GROUP=norm.group, GROUPS=self._config.n_groups, BLOCK=size_for(norm.group),
            ASKED=table is not None, num_warps=1,
        )  # fmt: skip
        return query


class _Layer:
    """One block on rows of the pool."""

    def __init__(
        self,
        block: Block,
        pool: dict[str, Tensor],
        number: int,
        kernels: Kernels,
        mixed: bool,
        triton: Any,
    ) -> None:
        ssd, ffn = block.ssd, block.ffn
        c = self._config = ssd.config
        self._triton, self._kernels = triton, kernels
        self._h, self._tails = pool["h"][:, number], pool["conv"][:, number]
        self._in = _product(ssd.in_proj, _by_part(ssd.in_proj, c.n_groups, c.d_inner, c.n_heads))
        self._taps = ssd.conv.weight.detach().T.contiguous()
        self._conv_bias, self._dt_bias = ssd.conv.bias.detach(), ssd.dt_bias.detach()
        self._A = -torch.exp(ssd.A_log.detach())
        self._bound, self._D = MAX_DECAY / -self._A, ssd.D.detach()
        self._mixed, self._norm_eps = mixed, ssd.norm.eps
        weight, bias = _product(ssd.out_proj)
        self._out = weight * ssd.norm.weight.detach()[:, None], bias
        self._out_norm, self._residual = _Norm(ssd.out_norm), ssd.residual
        self._activation = activation(c.activation)
        self._ffn = None
        if isinstance(ffn, FeedForward):
            self._ffn = _product(ffn.fc1), _product(ffn.fc2), _Norm(ffn.norm)

    def __call__(self, slots: Tensor, x: Tensor, mix: Tensor, pool_out: Tensor | None) -> Tensor:
        """(B, D) to (B, D), or into the rows of `pool_out`."""
        c, batch = self._config, len(x)
        projected = torch.addmm(self._in[1], x, self._in[0])
        convolved, delta = x.new_empty(batch, c.d_xbc), x.new_empty(batch, c.n_heads)
        self._triton.convolve[(batch,)](
            slots, projected, self._tails, self._taps, self._conv_bias, self._dt_bias, self._bound,
            mix, convolved, delta, self._tails.stride(0), mix.stride(0),
            E=c.d_inner, N=c.d_state, HEADS=c.n_heads, GROUPS=c.n_groups, K=c.d_conv,
            BLOCK=size_for(c.d_xbc), BLOCK_HEADS=size_for(c.n_heads),
            HARDSWISH=c.activation == "hardswish", MIXED=self._mixed,
            PRODUCT=c.gap_mix == "product", num_warps=2,
        )  # fmt: skip
        xs, b, c_ = torch.split(convolved, [c.d_inner, *2 * [c.n_groups * c.d_state]], 1)
        heads = partial(torch.unflatten, dim=1, sizes=(c.n_heads, c.head_dim))
        groups = partial(torch.unflatten, dim=1, sizes=(c.n_groups, c.d_state))
        y = self._kernels.step(
            heads(xs), delta, self._A, groups(b), groups(c_), self._h, slots, self._D,
            heads(projected[:, : c.d_inner]),
        )  # fmt: skip
        y = y.reshape(batch, -1)
        y = self._normalise(slots, y, None, c.d_inner // c.n_groups, self._norm_eps)
        mixed = torch.addmm(self._out[1], y, self._out[0])
        residual, norm = x if self._residual else None, self._out_norm
        if self._ffn is None:
            return self._normalise(slots, mixed, residual, norm.group, norm.eps, norm, pool_out)
        x = self._normalise(slots, mixed, residual, norm.group, norm.eps, norm)
        first, second, norm = self._ffn
        inner = self._activation(torch.addmm(first[1], x, first[0]))
        inner = torch.addmm(second[1], inner, second[0])
        return self._normalise(slots, inner, x, norm.group, norm.eps, norm, pool_out)

    def _normalise(
        self,
        slots: Tensor,
        x: Tensor,
        residual: Tensor | None,
        group: int,
        eps: float,
        norm: _Norm | None = None,
        pool_out: Tensor | None = None,
    ) -> Tensor:
        """A LayerNorm, an RMSNorm without weights where there is no `norm`."""
        out = torch.empty_like(x) if pool_out is None else pool_out
        self._triton.normalise[(len(x), self._config.n_groups)](
            slots, x, residual, None if norm is None else norm.weight,
            None if norm is None else norm.bias, out, out.stride(0), eps,
            GROUP=group, GROUPS=self._config.n_groups, BLOCK=size_for(group),
            RESIDUAL=residual is not None, LAYER=norm is not None, TO_POOL=pool_out is not None,
            num_warps=1,
        )  # fmt: skip
        return out


class _Norm:
    """What of a `GroupedLayerNorm` the kernels take."""

    def __init__(self, norm: GroupedLayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach(), norm.bias.detach(), norm.eps
        self.group = len(self.weight) // norm.groups


def _product(linear: GroupedLinear, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(in, out) weight and (out) bias; of several groups one matrix, zero between them."""
    parts = torch.unflatten(linear.weight.detach(), 0, (linear.groups, -1))
    weight: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    bias = linear.bias.detach()
    if order is not None:
        weight, bias = weight[order], bias[order]
    return weight.T.contiguous(), bias


def _by_part(linear: GroupedLinear, groups: int, d_inner: int, heads: int) -> Tensor:
    """Outputs of `in_proj` in the order z, convolved channels, dt, each group by group."""
    rows = torch.arange(linear.weight.shape[0], device=linear.weight.device).view(groups, -1)
    e, h = d_inner // groups, heads // groups
    z, xbc, dt = torch.split(rows, [e, rows.shape[1] - e - h, h], 1)
    return torch.cat([z.flatten(), xbc.flatten(), dt.flatten()])

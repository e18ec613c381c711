"""A model's step and read-out on a CPU with its weights prepared: the same sums, cheaper.

For arrays this small an operation costs more than its arithmetic, and numpy's cost a third of
torch's; only where a batch makes the arithmetic the larger part does torch do it, on the same
memory. What does not change between steps is computed once: the tables of all gaps lie side by
side, -exp(A_log) and the bound of the step size are numbers, biases and scales are folded into
their neighbours. Rows of a pool are changed in place. What is computed, `TiM4Rec.step` and
`TiM4Rec.query` say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.gaps import FIRST, N_SPECIAL, UNKNOWN, UNKNOWN_TIME, ZERO, GapGrid
from model.groups import GroupedLayerNorm
from model.layers import FACTOR_SPAN, MAX_DECAY, FeedForward, TimeAwareSSD
from model.state import State
from model.tim4rec import TiM4Rec

Ints = NDArray[np.int64]
Floats = NDArray[Any]
"""Of the weights' precision."""

BY_TORCH_FROM = 12
"""Users in a batch from which on torch does what is largest."""


class Stepper:
    """Steps of a model that can be stepped, on a CPU, with the weights it has now.

    One thread at a time may use it.

    Raises:
        TypeError: the model has no step of constant cost.
    """

    def __init__(self, model: TiM4Rec) -> None:
        if not model.steppable:
            raise TypeError("a `sequence` model has no step of constant cost")
        c = self._config = model.config
        self._items = _array(model.item_embedding.weight)
        self._in_norm = _Norm(model.in_norm)
        self._grid = model.gap_grid
        self._layers = [_Layer(block.ssd, block.ffn) for block in model.blocks]
        mixing = [block.ssd.gap_table for block in model.blocks]
        tables = [table.weight for table in (model.gap_embedding, *mixing) if table is not None]
        self._gaps = _pairs(torch.cat([*tables], 1)) if tables and c.time == "causal" else None
        self._embedded = c.d_model if model.gap_embedding is not None else 0
        self._mixed = any(table is not None for table in mixing)
        convolutions = [block.ssd.conv for block in model.blocks]
        taps = np.stack([_array(conv.weight.T) for conv in convolutions])  # (layers, K, C)
        self._old_taps, self._new_taps = taps[:, :-1].copy(), taps[:, -1].copy()
        self._conv_bias = np.stack([_array(conv.bias) for conv in convolutions])
        self._h: Floats = np.empty((0, c.n_layers, c.n_heads, c.head_dim, c.d_state))
        self._request: tuple[GapGrid, Floats, _Norm] | None = None
        if c.uses_request_time:
            scale, shift = model.request_table.weight.chunk(2, -1)
            table = _pairs(torch.cat([1 + scale, shift], 1))
            self._request = model.request_grid, table, _Norm(model.request_norm)

    def step(self, states: State, slots: Ints, items: Ints, times: Ints) -> None:
        """One more interaction of each user, in place.

        Args:
            states: a pool of them.
            slots: (B) rows of the pool, each once.
            items, times: (B), as for `TiM4Rec.step`.
        """
        c = self._config
        pool = {name: part.numpy() for name, part in states.parts.items()}
        last_times, counts = pool["last_time"][slots], pool["count"][slots]
        x: Floats = self._items[items]
        mixes: Floats | None = None
        if self._gaps is not None:
            usable = (times != UNKNOWN_TIME) & (last_times != UNKNOWN_TIME)
            kind = np.where(counts == 0, FIRST, np.where(usable, -1, UNKNOWN))
            gaps = np.where(usable, times - last_times, 0)
            values = _read(self._gaps, *_knots(self._grid, gaps, kind))
            if self._embedded:
                x += values[:, : self._embedded]
            if self._mixed:
                mixes = values[:, self._embedded :].reshape(len(x), c.n_layers, c.n_heads)
                mixes = 1 + mixes if c.gap_mix == "product" else _factor(mixes)
        x = self._in_norm(x)
        h = self._rows(pool["h"], slots)
        conv = pool["conv"][slots]
        before = np.add.reduce(conv * self._old_taps, 2)
        before += self._conv_bias
        conv[:, :, :-1] = conv[:, :, 1:]
        for i, layer in enumerate(self._layers):
            mix = None if mixes is None else mixes[:, i]
            x, conv[:, i, -1] = layer(x, mix, h[:, i], before[:, i], self._new_taps[i])
        if len(slots) > 1:
            pool["h"][slots] = h
        pool["conv"][slots] = conv
        pool["out"][slots] = x
        pool["last_time"][slots] = np.where(times == UNKNOWN_TIME, last_times, times)
        pool["count"][slots] = counts + 1

    def query(self, states: State, slots: Ints, request_times: Ints) -> Tensor:
        """What `TiM4Rec.query` says of these rows, asked for at those times: (B, D)."""
        out: Floats = states["out"].numpy()[slots]
        if self._request is not None:
            grid, table, norm = self._request
            last_times = states["last_time"].numpy()[slots]
            usable = (request_times != UNKNOWN_TIME) & (last_times != UNKNOWN_TIME)
            gaps = np.where(usable, request_times - last_times, 0)
            scale_shift = _read(table, *_knots(grid, gaps, np.where(usable, -1, UNKNOWN)))
            out *= scale_shift[:, : out.shape[1]]
            out += scale_shift[:, out.shape[1] :]
            out = norm(out)
        return torch.from_numpy(out)

    def _rows(self, pool_h: Floats, slots: Ints) -> Floats:
        """The rows: of the pool itself if it is one, else copied to where others were before,
        because new memory for so much is zeroed by the kernel, page by page."""
        if len(slots) == 1:
            return pool_h[slots[0] : slots[0] + 1]
        if len(self._h) < len(slots) or self._h.dtype != pool_h.dtype:
            self._h = np.empty((len(slots), *pool_h.shape[1:]), pool_h.dtype)
        return np.take(pool_h, slots, 0, out=self._h[: len(slots)], mode="clip")


class _Layer:
    """One block: the time-aware SSD and its feed-forward network."""

    def __init__(self, ssd: TimeAwareSSD, ffn: nn.Module) -> None:
        c = self._config = ssd.config
        groups = c.n_groups
        self._hardswish = c.activation == "hardswish"
        self._product = ssd.gap_table is not None and c.gap_mix == "product"
        self._dt_bias, in_bias = _array(ssd.dt_bias), _array(ssd.in_proj.bias).copy()
        if not self._product:
            per_group = c.n_heads // groups
            in_bias.reshape(groups, -1)[:, -per_group:] += self._dt_bias.reshape(groups, -1)
        self._in = _Linear(ssd.in_proj.weight, in_bias, groups)
        self._A = -np.exp(_array(ssd.A_log))
        self._bound = MAX_DECAY / -self._A
        self._skip = _array(ssd.D).repeat(c.head_dim)
        self._eps = ssd.norm.eps
        scale = ssd.norm.weight.reshape(groups, 1, -1)
        weight = (torch.unflatten(ssd.out_proj.weight, 0, (groups, -1)) * scale).flatten(0, 1)
        self._out = _Linear(weight, _array(ssd.out_proj.bias), groups)
        self._out_norm, self._residual = _Norm(ssd.out_norm), ssd.residual
        self._ffn = None
        if isinstance(ffn, FeedForward):
            first, second = (
                _Linear(fc.weight, _array(fc.bias), groups) for fc in (ffn.fc1, ffn.fc2)
            )
            self._ffn = first, second, _Norm(ffn.norm)

    def __call__(
        self, x: Floats, mix: Floats | None, h: Floats, before: Floats, newest_tap: Floats
    ) -> tuple[Floats, Floats]:
        """Output (B, D) and the convolution's new input (B, E+2GN); h (B, H, P, N) is changed.

        Args:
            mix: (B, H), what the gap multiplies the step size by.
            before: (B, E+2GN), what the earlier inputs add to the convolution.
        """
        c, batch, groups = self._config, len(x), self._config.n_groups
        e, n, wide = c.d_inner // groups, c.d_state, c.d_xbc // groups
        projected = self._in(x).reshape(batch, groups, -1)
        z = projected[:, :, :e].reshape(batch, -1)
        xbc = projected[:, :, e : e + wide].reshape(batch, -1)
        dt = projected[:, :, e + wide :].reshape(batch, -1)
        mixed = xbc * newest_tap
        mixed += before
        mixed = self._activated(mixed)
        parts = mixed.reshape(batch, groups, -1)
        xs = parts[:, :, :e].reshape(batch, -1)
        b, c_ = parts[:, :, e : e + n], parts[:, :, e + n :]
        if self._product:
            assert mix is not None
            delta = np.logaddexp(0, dt * mix + self._dt_bias)
        else:
            delta = np.logaddexp(0, dt)
            if mix is not None:
                delta *= mix
        np.minimum(delta, self._bound, out=delta)
        decay = np.exp(delta * self._A)[:, :, None, None]
        added = xs.reshape(batch, c.n_heads, c.head_dim) * delta[:, :, None]
        added = added.reshape(batch, groups, e, 1)
        by_group = h.reshape(batch, groups, e, n)
        if batch < BY_TORCH_FROM:
            h *= decay
            by_group += added * b[:, :, None]
        else:
            torch.from_numpy(h).mul_(torch.from_numpy(decay))
            new = torch.from_numpy(added), torch.from_numpy(b[:, :, None])
            torch.from_numpy(by_group).addcmul_(*new)
        y = np.matmul(by_group, c_[..., None]).reshape(batch, -1)
        y += xs * self._skip
        y *= _silu(z)
        whole = y.reshape(batch, groups, e)
        whole /= _root_mean_square(whole, self._eps)
        out = self._out(y)
        if self._residual:
            out += x
        x = self._out_norm(out)
        if self._ffn is not None:
            first, second, norm = self._ffn
            inner = second(self._activated(first(x)))
            inner += x
            x = norm(inner)
        return x, xbc

    def _activated(self, x: Floats) -> Floats:
        if not self._hardswish:
            return _silu(x)
        out: Floats = x + 3
        np.maximum(out, 0, out=out)
        np.minimum(out, 6, out=out)
        out *= x
        out *= 1 / 6
        return out


class _Linear:
    """A `GroupedLinear`: x W^T + b in each group."""

    def __init__(self, weight: Tensor, bias: Floats, groups: int) -> None:
        by_group = torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2)  # (G, in, out)
        self._groups, self._bias = groups, bias
        self._weight = _array(by_group[0] if groups == 1 else by_group)
        self._torch = torch.from_numpy(self._bias), torch.from_numpy(self._weight)

    def __call__(self, x: Floats) -> Floats:
        out: Floats
        if self._groups > 1:
            parts = x.reshape(len(x), self._groups, -1).swapaxes(0, 1)
            out = np.matmul(parts, self._weight).swapaxes(0, 1).reshape(len(x), -1)
        elif len(x) < BY_TORCH_FROM:
            out = x @ self._weight
        else:
            bias, weight = self._torch
            return torch.addmm(bias, torch.from_numpy(x), weight).numpy()
        out += self._bias
        return out


class _Norm:
    """A `GroupedLayerNorm`."""

    def __init__(self, norm: GroupedLayerNorm) -> None:
        self._weight, self._bias, self._eps = _array(norm.weight), _array(norm.bias), norm.eps
        self._groups = norm.groups

    def __call__(self, x: Floats) -> Floats:
        parts = x.reshape(len(x), self._groups, -1)
        normed: Floats = parts - np.add.reduce(parts, 2, keepdims=True) / parts.shape[2]
        normed /= _root_mean_square(normed, self._eps)
        out = normed.reshape(x.shape)
        out *= self._weight
        out += self._bias
        return out


def _array(weight: Tensor) -> Floats:
    array: Floats = weight.detach().contiguous().numpy()
    return array


def _root_mean_square(x: Floats, eps: float) -> Floats:
    mean: Floats = np.add.reduce(x * x, -1, keepdims=True)
    mean /= x.shape[-1]
    mean += eps
    return np.sqrt(mean, out=mean)


def _silu(x: Floats) -> Floats:
    """x / (1 + exp(-x)), but nothing in it can overflow."""
    out: Floats = np.tanh(x * 0.5)
    out += 1
    out *= x
    out *= 0.5
    return out


def _factor(mixes: Floats) -> Floats:
    out: Floats = np.tanh(mixes)
    out *= FACTOR_SPAN
    return np.exp(out, out=out)


def _pairs(table: Tensor) -> Floats:
    """(rows, W) to (rows, 2W): each row, and what leads from it to the next."""
    following = torch.cat([table[1:], table[-1:]])
    return _array(torch.cat([table, following - table], 1))


def _read(pairs: Floats, row: Ints, weight: Floats) -> Floats:
    """(B) knots to (B, W) values."""
    found, width = pairs[row], pairs.shape[1] // 2
    out: Floats = found[:, width:] * weight.astype(pairs.dtype)[:, None]
    out += found[:, :width]
    return out


def _knots(grid: GapGrid, gap_ms: Ints, kind: Ints) -> tuple[Ints, NDArray[np.float64]]:
    """As `GapGrid.forward`: rows, and weights between them."""
    low, high = grid.range_s
    seconds = np.minimum(np.maximum(gap_ms / 1000, low), high)
    place = np.log2(seconds) - grid.first_knot
    whole = np.minimum(np.maximum(np.floor(place), 0), grid.rows - N_SPECIAL - 2)
    special = np.where((kind < 0) & (gap_ms <= 0), ZERO, kind)
    known = special < 0
    return (
        np.where(known, whole.astype(np.int64) + N_SPECIAL, special),
        np.where(known, place - whole, 0.0),
    )

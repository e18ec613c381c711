"""A model's steps and read-out on a CPU, in numpy, on the rows of a pool.

What is computed, `TiM4Rec.step`, `TiM4Rec.prefill` and `TiM4Rec.query` say; why it is cheaper here,
`model/prepared.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import chunk_scan
from model.chunk_scan import Places
from model.gap_values import GapValues, Ints
from model.gaps import UNKNOWN_TIME
from model.prepared import BY_TORCH_FROM, Floats, Layer, Norm, array, factor
from model.state import State
from model.tim4rec import TiM4Rec

ADVANCED = 64
"""Interactions of a user up to which `advance` is quicker than `TiM4Rec.prefill`."""


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
        self._items = array(model.item_embedding.weight)
        self._in_norm = Norm(model.in_norm)
        self._layers = [Layer(block.ssd, block.ffn) for block in model.blocks]
        mixing = [block.ssd.gap_table for block in model.blocks]
        tables = [table.weight for table in (model.gap_embedding, *mixing) if table is not None]
        self._gaps: GapValues | None = None
        if tables and c.time == "causal":
            self._gaps = GapValues(model.gap_grid, torch.cat([*tables], 1))
        self._embedded = c.d_model if model.gap_embedding is not None else 0
        self._mixed = any(table is not None for table in mixing)
        convolutions = [block.ssd.conv for block in model.blocks]
        self._taps = np.stack([array(conv.weight.T) for conv in convolutions])  # (layers, K, C)
        self._old_taps, self._new_taps = self._taps[:, :-1].copy(), self._taps[:, -1].copy()
        self._conv_bias = np.stack([array(conv.bias) for conv in convolutions])
        self._h: Floats = np.empty((0, c.n_layers, c.n_heads, c.head_dim, c.d_state))
        self._request: tuple[GapValues, Norm] | None = None
        if c.uses_request_time:
            scale, shift = model.request_table.weight.chunk(2, -1)
            values = GapValues(model.request_grid, torch.cat([1 + scale, shift], 1))
            self._request = values, Norm(model.request_norm)

    def step(self, states: State, slots: Ints, items: Ints, times: Ints) -> None:
        """One more interaction of each user, in place.

        Args:
            states: a pool of them.
            slots: (B) rows of the pool, each once.
            items, times: (B), as for `TiM4Rec.step`.
        """
        pool = {name: part.numpy() for name, part in states.parts.items()}
        last_times, counts = pool["last_time"][slots], pool["count"][slots]
        x, mixes = self._input(items, times, last_times, counts == 0)
        h = self._rows(pool["h"], slots)
        conv = pool["conv"][slots]
        before = np.add.reduce(conv * self._old_taps, 2)
        before += self._conv_bias
        conv[:, :, :-1] = conv[:, :, 1:]
        for i, layer in enumerate(self._layers):
            mix = None if mixes is None else mixes[:, i]
            x, conv[:, i, -1] = _step(layer, x, mix, h[:, i], before[:, i], self._new_taps[i])
        if len(slots) > 1:
            pool["h"][slots] = h
        pool["conv"][slots] = conv
        pool["out"][slots] = x
        pool["last_time"][slots] = np.where(times == UNKNOWN_TIME, last_times, times)
        counts += 1
        pool["count"][slots] = counts

    def advance(self, states: State, slots: Ints, items: Ints, times: Ints, lengths: Ints) -> None:
        """Several more interactions of each user, in place; quadratic in the most of one.

        Args:
            states, slots: as for `step`.
            items, times: (N) the users' interactions, one user's after the other's.
            lengths: (B) how many of each, at least 1.
        """
        pool = {name: part.numpy() for name, part in states.parts.items()}
        places = Places(lengths)
        counts = pool["count"][slots]
        # The last known time up to each position, in rows that begin with the one before.
        known = np.full((len(slots), 1 + places.shape[1]), UNKNOWN_TIME)
        known[:, 0] = pool["last_time"][slots]
        known[places.users, 1 + places.positions] = times
        latest = np.where(known != UNKNOWN_TIME, np.arange(known.shape[1]), 0)
        known = np.take_along_axis(known, np.maximum.accumulate(latest, 1), 1)
        first = (counts == 0)[places.users] & (places.positions == 0)
        last_times = known[places.users, places.positions]
        x, mixes = self._input(items, times, last_times, first)
        h, conv = self._rows(pool["h"], slots), pool["conv"][slots]
        for i, layer in enumerate(self._layers):
            x = chunk_scan.advance(
                layer, x, None if mixes is None else mixes[:, i], places, h[:, i], conv[:, i],
                self._taps[i], self._conv_bias[i], ends_only=i == len(self._layers) - 1,
            )  # fmt: skip
        if len(slots) > 1:
            pool["h"][slots] = h
        pool["conv"][slots] = conv
        pool["out"][slots] = x
        pool["last_time"][slots] = known[:, -1]
        pool["count"][slots] = counts + lengths

    def query(self, states: State, slots: Ints, request_times: Ints) -> Tensor:
        """What `TiM4Rec.query` says of these rows, asked for at those times: (B, D)."""
        out: Floats = states["out"].numpy()[slots]
        if self._request is not None:
            values, norm = self._request
            scale_shift = values(request_times, states["last_time"].numpy()[slots], None)
            out *= scale_shift[:, : out.shape[1]]
            out += scale_shift[:, out.shape[1] :]
            out = norm(out)
        return torch.from_numpy(out)

    def _input(
        self,
        items: Ints,
        times: Ints,
        last_times: Ints,
        first: NDArray[np.bool_],
    ) -> tuple[Floats, Floats | None]:
        """What goes into the first layer (N, D), and what the gaps multiply each layer's step
        sizes by (N, layers, H)."""
        c = self._config
        x: Floats = self._items[items]
        mixes: Floats | None = None
        if self._gaps is not None:
            values = self._gaps(times, last_times, first)
            if self._embedded:
                x += values[:, : self._embedded]
            if self._mixed:
                mixes = values[:, self._embedded :].reshape(len(x), c.n_layers, c.n_heads)
                mixes = 1 + mixes if c.gap_mix == "product" else factor(mixes)
        return self._in_norm(x), mixes

    def _rows(self, pool_h: Floats, slots: Ints) -> Floats:
        """The rows: of the pool itself if it is one, else copied to where others were before,
        because new memory for so much is zeroed by the kernel, page by page."""
        if len(slots) == 1:
            return pool_h[slots[0] : slots[0] + 1]
        if len(self._h) < len(slots) or self._h.dtype != pool_h.dtype:
            self._h = np.empty((len(slots), *pool_h.shape[1:]), pool_h.dtype)
        return np.take(pool_h, slots, 0, out=self._h[: len(slots)], mode="clip")


def _step(
    layer: Layer, x: Floats, mix: Floats | None, h: Floats, before: Floats, newest_tap: Floats
) -> tuple[Floats, Floats]:
    """Output (B, D) and the convolution's new input (B, E+2GN); h (B, H, P, N) is changed.

    Args:
        mix: (B, H), what the gap multiplies the step size by.
        before: (B, E+2GN), what the earlier inputs add to the convolution.
    """
    c, batch, groups = layer.config, len(x), layer.config.n_groups
    e, n = c.d_inner // groups, c.d_state
    half_z, xbc, dt = layer.project(x)
    mixed = xbc * newest_tap
    mixed += before
    parts = layer.activated(mixed).reshape(batch, groups, -1)
    xs = parts[:, :, :e].reshape(batch, -1)
    b, c_ = parts[:, :, e : e + n], parts[:, :, e + n :]
    delta = layer.step_size(dt, mix)
    decay = np.exp(delta * layer.A)[:, :, None, None]
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
    xs = xs * layer.skip
    y += xs
    return layer.finish(y, half_z, x), xbc

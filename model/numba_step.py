"""TiM4Rec's step and read-out for a CPU, as one loop that Numba compiles.

For one user the arithmetic takes some microseconds, and every operation of an array library about
one: here there are none. What is computed, `TiM4Rec.step` and `TiM4Rec.query` say;
`model/triton_step.py` does the same on a GPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.compiled import compiled, part

Floats = NDArray[Any]
"""Of the weights' precision."""
Ints = NDArray[np.int64]


class Weights(NamedTuple):
    """Of a model with V items, W = embedded + layers x heads values a gap, M = (E + C + H) / G.

    Attributes:
        items: (V + 1, D), row 0 the padding's.
        in_norm, request_norm: (2, D), scale and shift.
        gaps, request: (rows, 2 W) and (rows, 4 D): what a table says at each knot, and what leads
            from there to the next. The request's are scales, 1 already added, and shifts.
        project, project_bias: (layers, G, D / G, M) and (layers, G M).
        taps: (layers, K + 1, C), the newest tap and then the bias last.
        heads: (layers, 4, H): step size's bias, A, largest step size, skip.
        out, up, down: (layers, G, inputs, outputs) of a group, with the gated norm's scale in it;
            `up` and `down` are empty without a feed-forward network.
        up_bias: (layers, 4 D).
        vectors: (layers, 6, D): bias of `out`, scale and shift of its norm, the same of `down`.
    """

    items: Floats
    in_norm: Floats
    gaps: Floats
    request: Floats
    request_norm: Floats
    project: Floats
    project_bias: Floats
    taps: Floats
    heads: Floats
    out: Floats
    up: Floats
    up_bias: Floats
    down: Floats
    vectors: Floats


class Grid(NamedTuple):
    """A `GapGrid`: gaps in seconds, the logarithm of the first knot, rows of special kinds."""

    low: float
    high: float
    first_knot: int
    unknown_time: int
    first: int
    unknown: int
    zero: int
    special: int


class Options(NamedTuple):
    """What the weights' shapes do not say.

    Attributes:
        embedded: how many of a gap's values are added to the item.
        mixed, product: whether a gap changes the step size, and before the softplus.
        span: `model.layers.FACTOR_SPAN`.
    """

    groups: int
    embedded: int
    mixed: bool
    product: bool
    span: float
    residual: bool
    hardswish: bool
    norm_eps: float
    ffn_eps: float
    gaps: Grid
    request: Grid


class _Scratch(NamedTuple):
    """Of R interactions: (R, D), (R, W), (R, G M), (R, E), (R, D) and (R, 4 D), and (C)."""

    x: Floats
    gaps: Floats
    projected: Floats
    y: Floats
    inner: Floats
    up: Floats
    mixed: Floats


BLOCK = 16
"""Interactions that pass a layer together, so that its weights come from memory once."""


@compiled
def step(
    w: Weights,
    o: Options,
    h: Floats,
    conv: Floats,
    out: Floats,
    last_time: Ints,
    count: Ints,
    slots: Ints,
    items: Ints,
    times: Ints,
) -> None:
    """Moves rows of a pool on by their interactions, in place.

    Args:
        h, conv, out, last_time, count: the parts of `TiM4Rec.state_layout`, whole.
        slots, items, times: (N) row, item and time, milliseconds, of each interaction; those of
            one row are in their order.
    """
    kind, n_heads, rows = w.items.dtype, w.heads.shape[2], min(len(slots), BLOCK)
    s = _Scratch(
        np.empty((rows, w.items.shape[1]), kind),
        np.empty((rows, w.gaps.shape[1] // 2), kind),
        np.empty((rows, w.project_bias.shape[1]), kind),
        np.empty((rows, w.out.shape[2] * o.groups), kind),
        np.empty((rows, w.items.shape[1]), kind),
        np.empty((rows, w.up_bias.shape[1]), kind),
        np.empty(w.taps.shape[2], kind),
    )
    for begin in range(0, len(slots), BLOCK):
        n = min(BLOCK, len(slots) - begin)
        for r in range(n):
            slot, time, x, gap = slots[begin + r], times[begin + r], s.x[r], s.gaps[r]
            for j in range(len(x)):
                x[j] = w.items[items[begin + r], j]
            if len(gap):
                _read(w.gaps, o.gaps, time, last_time[slot], count[slot] == 0, gap)
                for j in range(o.embedded):
                    x[j] += gap[j]
            _norm(x, w.in_norm[0], w.in_norm[1], o.norm_eps, o.groups, x)
            if time != o.gaps.unknown_time:
                last_time[slot] = time
            count[slot] += 1
        for layer in range(len(w.project)):
            _project(w, o, layer, s, n)
            for r in range(n):
                slot = slots[begin + r]
                mix = s.gaps[r, o.embedded + layer * n_heads :] if o.mixed else s.gaps[r, :0]
                _scan(w, o, layer, s, r, mix, h[slot, layer], conv[slot, layer])
            _finish(w, o, layer, s, n)
        for r in range(n):
            for j in range(s.x.shape[1]):
                out[slots[begin + r], j] = s.x[r, j]


@compiled
def query(
    w: Weights, o: Options, out: Floats, last_time: Ints, slots: Ints, request_times: Ints
) -> Floats:
    """What rows of a pool recommend, asked for at those times (B), milliseconds: (B, D)."""
    d = w.items.shape[1]
    found = np.empty((len(slots), d), w.items.dtype)
    scale_shift = np.empty(2 * d, w.items.dtype)
    for i in range(len(slots)):
        x = found[i]
        for j in range(d):
            x[j] = out[slots[i], j]
        if len(w.request):
            _read(w.request, o.request, request_times[i], last_time[slots[i]], False, scale_shift)
            for j in range(d):
                x[j] = x[j] * scale_shift[j] + scale_shift[d + j]
            _norm(x, w.request_norm[0], w.request_norm[1], o.norm_eps, o.groups, x)
    return found


@part
def _project(w: Weights, o: Options, layer: int, s: _Scratch, n: int) -> None:
    d, m = s.x.shape[1] // o.groups, w.project.shape[3]
    for g in range(o.groups):
        _linear(s.x, g * d, w.project[layer, g], w.project_bias[layer], s.projected, g * m, n)


@part
def _scan(
    w: Weights, o: Options, layer: int, s: _Scratch, r: int, mix: Floats, h: Floats, tail: Floats
) -> None:
    """Convolution, `ssd_step` and gate: h (H, P, N) and the tail (K-1, C) move on, s.y is the
    gated output."""
    e, m = s.y.shape[1] // o.groups, w.project.shape[3]
    width = w.taps.shape[2] // o.groups  # of the convolution, in a group: x, B and C
    for g in range(o.groups):
        new = s.projected[r, g * m + e : g * m + e + width]
        _convolve(new, tail, w.taps[layer], g * width, s.mixed)
    _activate(s.mixed, o.hardswish)
    per_group = len(h) // o.groups
    for head in range(len(h)):
        g, place = head // per_group, head % per_group
        size = s.projected[r, g * m + e + width + place]
        delta, decay = _step_size(w.heads[layer, :, head], o, size, mix, head)
        values = s.mixed[g * width : (g + 1) * width]
        b, c = values[e : len(values) - h.shape[2]], values[len(values) - h.shape[2] :]
        x = values[place * h.shape[1] : (place + 1) * h.shape[1]]
        y = s.y[r, head * h.shape[1] : (head + 1) * h.shape[1]]
        _state_update(h[head], x, b, c, delta, decay, w.heads[layer, 3, head], y)
    for g in range(o.groups):
        y, z = s.y[r, g * e : (g + 1) * e], s.projected[r, g * m : g * m + e]
        _gate(y, z, o.norm_eps)


@part
def _finish(w: Weights, o: Options, layer: int, s: _Scratch, n: int) -> None:
    """s.x becomes the block's output."""
    vectors, groups = w.vectors[layer], o.groups
    d, e = s.x.shape[1] // groups, s.y.shape[1] // groups
    for g in range(groups):
        _linear(s.y, g * e, w.out[layer, g], vectors[0], s.inner, g * d, n)
    for r in range(n):
        x, inner = s.x[r], s.inner[r]
        if o.residual:
            for j in range(len(x)):
                inner[j] += x[j]
        _norm(inner, vectors[1], vectors[2], o.norm_eps, groups, x)
    wide = w.up.shape[3]
    if not wide:
        return
    for g in range(groups):
        _linear(s.x, g * d, w.up[layer, g], w.up_bias[layer], s.up, g * wide, n)
    for r in range(n):
        _activate(s.up[r], o.hardswish)
    for g in range(groups):
        _linear(s.up, g * wide, w.down[layer, g], vectors[3], s.inner, g * d, n)
    for r in range(n):
        x, inner = s.x[r], s.inner[r]
        for j in range(len(x)):
            inner[j] += x[j]
        _norm(inner, vectors[4], vectors[5], o.ffn_eps, groups, x)


@part
def _read(table: Floats, grid: Grid, time: int, last_time: int, first: bool, out: Floats) -> None:
    """What a table says of the gap between two times, as `GapGrid` and `GapTable` do."""
    row, weight = grid.unknown, 0.0
    if first:
        row = grid.first
    elif time != grid.unknown_time and last_time != grid.unknown_time:
        row = grid.zero
        if time > last_time:
            seconds = min(max((time - last_time) / 1000, grid.low), grid.high)
            place = math.log2(seconds) - grid.first_knot
            whole = min(max(math.floor(place), 0), len(table) - grid.special - 2)
            row, weight = int(whole) + grid.special, place - whole
    share = table.dtype.type(weight)
    for j in range(len(out)):
        out[j] = table[row, j] + share * table[row, len(out) + j]


@part
def _linear(
    x: Floats, x_from: int, weight: Floats, bias: Floats, out: Floats, out_from: int, n: int
) -> None:
    """out = x weight (I, J) + bias in the first n rows, from these columns on."""
    x_to, out_to = x_from + weight.shape[0], out_from + weight.shape[1]
    for r in range(n):
        for j in range(out_from, out_to):
            out[r, j] = bias[j]
    for r in range(0, n - 1, 2):
        a, b = out[r, out_from:out_to], out[r + 1, out_from:out_to]
        _two_rows(x[r, x_from:x_to], x[r + 1, x_from:x_to], weight, a, b)
    if n % 2:
        _one_row(x[n - 1, x_from:x_to], weight, out[n - 1, out_from:out_to])


# Four inputs at a time: `out` is read and written less often. Two rows: the weights are.
@part
def _one_row(x: Floats, weight: Floats, out: Floats) -> None:
    fours = len(x) // 4 * 4
    for i in range(0, fours, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(len(out)):
            out[j] += (
                a * weight[i, j]
                + b * weight[i + 1, j]
                + c * weight[i + 2, j]
                + d * weight[i + 3, j]
            )
    for i in range(fours, len(x)):
        for j in range(len(out)):
            out[j] += x[i] * weight[i, j]


@part
def _two_rows(x: Floats, x2: Floats, weight: Floats, out: Floats, out2: Floats) -> None:
    fours = len(x) // 4 * 4
    for i in range(0, fours, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        a2, b2, c2, d2 = x2[i], x2[i + 1], x2[i + 2], x2[i + 3]
        for j in range(len(out)):
            wa, wb, wc, wd = weight[i, j], weight[i + 1, j], weight[i + 2, j], weight[i + 3, j]
            out[j] += a * wa + b * wb + c * wc + d * wd
            out2[j] += a2 * wa + b2 * wb + c2 * wc + d2 * wd
    for i in range(fours, len(x)):
        for j in range(len(out)):
            out[j] += x[i] * weight[i, j]
            out2[j] += x2[i] * weight[i, j]


@part
def _norm(x: Floats, scale: Floats, shift: Floats, eps: float, groups: int, out: Floats) -> None:
    """A `GroupedLayerNorm`; `out` may be `x`."""
    kind, width = x.dtype.type, len(x) // groups
    for g in range(groups):
        begin = g * width
        total = kind(0)
        for j in range(begin, begin + width):
            total += x[j]
        mean, squares = kind(total / width), kind(0)
        for j in range(begin, begin + width):
            squares += (x[j] - mean) * (x[j] - mean)
        factor = kind(1 / math.sqrt(squares / width + eps))
        for j in range(begin, begin + width):
            out[j] = (x[j] - mean) * factor * scale[j] + shift[j]


@part
def _convolve(new: Floats, tail: Floats, taps: Floats, begin: int, out: Floats) -> None:
    """`CausalConv` at one position, in channels from `begin` on; its input then is the tail's
    newest."""
    old = len(tail)
    for j in range(len(new)):
        out[begin + j] = taps[old + 1, begin + j] + new[j] * taps[old, begin + j]
    for k in range(old):
        for j in range(begin, begin + len(new)):
            out[j] += tail[k, j] * taps[k, j]
    for k in range(1, old):
        for j in range(begin, begin + len(new)):
            tail[k - 1, j] = tail[k, j]
    for j in range(len(new)):
        tail[old - 1, begin + j] = new[j]


@part
def _activate(x: Floats, hardswish: bool) -> None:
    kind = x.dtype.type
    zero, sixth, one, three, six = kind(0), kind(1 / 6), kind(1), kind(3), kind(6)
    if hardswish:
        for j in range(len(x)):
            x[j] *= min(max(x[j] + three, zero), six) * sixth
    else:
        for j in range(len(x)):
            x[j] /= one + math.exp(-x[j])


@part
def _step_size(head: Floats, o: Options, dt: float, mix: Floats, place: int) -> tuple[float, float]:
    """`TimeAwareSSD`'s, and how much of the state it leaves."""
    kind = head.dtype.type
    if o.product:
        dt *= 1 + mix[place]
    dt += head[0]
    size = max(dt, 0.0) + math.log1p(math.exp(-abs(dt)))  # a softplus that can't overflow
    if o.mixed and not o.product:
        size *= math.exp(o.span * math.tanh(mix[place]))
    delta = kind(min(size, head[2]))
    return delta, kind(math.exp(delta * head[1]))


@part
def _state_update(
    h: Floats, x: Floats, b: Floats, c: Floats, delta: float, decay: float, skip: float, y: Floats
) -> None:
    """One head: h (P, N) moves on; x and y are (P), b and c (N)."""
    for p in range(len(x)):
        row, added, total = h[p], x[p] * delta, h.dtype.type(0)
        for j in range(len(b)):
            row[j] = row[j] * decay + added * b[j]
            total += row[j] * c[j]
        y[p] = total + skip * x[p]


@part
def _gate(y: Floats, z: Floats, eps: float) -> None:
    """A `GatedRMSNorm` without its scale, in place."""
    kind = y.dtype.type
    one, squares = kind(1), kind(0)
    for j in range(len(y)):
        y[j] *= z[j] / (one + math.exp(-z[j]))
        squares += y[j] * y[j]
    factor = kind(1 / math.sqrt(squares / len(y) + eps))
    for j in range(len(y)):
        y[j] *= factor

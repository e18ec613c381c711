"""What of a step is neither a product of matrices nor mamba-ssm's, as Triton kernels.

A program is a row of the batch. Its user's state is a row of a pool, `slot`, and is changed in
place; a negative slot pads the batch to a size that a CUDA graph was made for, and nothing is read
or written for it. What is computed, `TiM4Rec.step` and `TiM4Rec.query` say.
"""

# mypy: ignore-errors
# Triton's language is no Python to mypy.

from __future__ import annotations

import triton
import triton.language as tl

NO_TIME = tl.constexpr(-(2**63))
FIRST, UNKNOWN, ZERO, N_SPECIAL = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def _knots(gap, kind, low, high, first_knot, n_rows):
    """As `GapGrid.forward`, of one gap in ms: a row, and the weight of the next one."""
    seconds = tl.minimum(tl.maximum(gap.to(tl.float64) / 1000, low), high)
    place = tl.log2(seconds) - first_knot
    whole = tl.minimum(tl.maximum(tl.floor(place), 0), n_rows - N_SPECIAL - 2)
    special = tl.where((kind < 0) & (gap <= 0), ZERO, kind)
    at = tl.where(special < 0, whole.to(tl.int64) + N_SPECIAL, special)
    return at, tl.where(special < 0, place - whole, 0.0).to(tl.float32)


@triton.jit
def _read(table, at, weight, n_rows, width, columns, inside):
    below = tl.load(table + at * width + columns, mask=inside, other=0.0)
    following = tl.minimum(at + 1, n_rows - 1)
    above = tl.load(table + following * width + columns, mask=inside, other=0.0)
    return below + weight * (above - below)


@triton.jit
def _normal(x, inside, width, eps, CENTRED: tl.constexpr):
    if CENTRED:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    return x / tl.sqrt(tl.sum(x * x, 0) / width + eps)


@triton.jit
def enter(
    slots, items, times, last_times, counts,
    embedding, table, weight, bias, x_out, mix_out,
    low, high, first_knot, n_rows, eps,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
    EMBEDDED: tl.constexpr, MIXES: tl.constexpr, BLOCK_MIXES: tl.constexpr,
    FACTOR: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The blocks' first input (B, D) and what gaps multiply step sizes by (B, layers x H)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        item, time = tl.load(items + row), tl.load(times + row)
        last, count = tl.load(last_times + slot), tl.load(counts + slot)
        usable = (time != NO_TIME) & (last != NO_TIME)
        kind = tl.where(count == 0, FIRST, tl.where(usable, -1, UNKNOWN))
        gap = tl.where(usable, time - last, 0)
        at, part = _knots(gap, kind, low, high, first_knot, n_rows)
        width = GROUP * GROUPS
        columns_of_table = width * EMBEDDED + MIXES
        for group in tl.static_range(GROUPS):
            within = tl.arange(0, BLOCK)
            inside, columns = within < GROUP, group * GROUP + within
            x = tl.load(embedding + item * width + columns, mask=inside, other=0.0)
            if EMBEDDED:
                x += _read(table, at, part, n_rows, columns_of_table, columns, inside)
            x = _normal(x, inside, GROUP, eps, True)
            x *= tl.load(weight + columns, mask=inside, other=0.0)
            x += tl.load(bias + columns, mask=inside, other=0.0)
            tl.store(x_out + row * width + columns, x, mask=inside)
        if MIXES:
            columns = tl.arange(0, BLOCK_MIXES)
            inside = columns < MIXES
            place = width * EMBEDDED + columns
            mix = _read(table, at, part, n_rows, columns_of_table, place, inside)
            # tanh(a) = 2 sigmoid(2a) - 1
            mix = tl.exp(SPAN * (2 * tl.sigmoid(2 * mix) - 1)) if FACTOR else 1 + mix
            tl.store(mix_out + row * MIXES + columns, mix, mask=inside)
        tl.store(last_times + slot, tl.where(time == NO_TIME, last, time))
        tl.store(counts + slot, count + 1)


@triton.jit
def convolve(
    slots, projected, tails, taps, bias, dt_bias, bound, mix, mixed_out, delta_out,
    stride_tail, stride_mix,
    E: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    HARDSWISH: tl.constexpr, MIXED: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The convolution's output (B, E | G N | G N), its tail moved on, and the step sizes (B, H).

    Args:
        projected: (B, E | E + 2GN, group by group | H).
        tails: (rows, K-1, E + 2GN), group by group.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        channels: tl.constexpr = E + 2 * GROUPS * N
        width: tl.constexpr = E // GROUPS
        projected += row * (E + channels + HEADS)
        tails += slot * stride_tail
        c = tl.arange(0, BLOCK)
        inside = c < channels
        newest = tl.load(projected + E + c, mask=inside, other=0.0)
        x = tl.load(bias + c, mask=inside, other=0.0)
        for k in tl.static_range(K - 1):
            old = tl.load(tails + k * channels + c, mask=inside, other=0.0)
            x += old * tl.load(taps + k * channels + c, mask=inside, other=0.0)
            if k:
                tl.store(tails + (k - 1) * channels + c, old, mask=inside)
        x += newest * tl.load(taps + (K - 1) * channels + c, mask=inside, other=0.0)
        tl.store(tails + (K - 2) * channels + c, newest, mask=inside)
        gate = tl.minimum(tl.maximum(x + 3, 0.0), 6.0) / 6 if HARDSWISH else tl.sigmoid(x)
        group, within = c // (width + 2 * N), c % (width + 2 * N)
        of_c = E + (GROUPS + group) * N + within - width - N
        of_b = E + group * N + within - width
        place = tl.where(within < width + N, of_b, of_c)
        place = tl.where(within < width, group * width + within, place)
        tl.store(mixed_out + row * channels + place, x * gate, mask=inside)

        head = tl.arange(0, BLOCK_HEADS)
        inside = head < HEADS
        dt = tl.load(projected + E + channels + head, mask=inside, other=0.0)
        factor = tl.full((BLOCK_HEADS,), 1.0, tl.float32)
        if MIXED:
            factor = tl.load(mix + row * stride_mix + head, mask=inside, other=0.0)
        if PRODUCT:
            dt *= factor
        dt += tl.load(dt_bias + head, mask=inside, other=0.0)
        # In float64, for float32 has no digits of 1 + exp(dt) where that is little.
        soft = tl.log(1 + tl.exp(tl.minimum(dt, 20.0).to(tl.float64))).to(tl.float32)
        delta = tl.where(dt > 20.0, dt, soft)
        if not PRODUCT:
            delta *= factor
        delta = tl.minimum(delta, tl.load(bound + head, mask=inside, other=0.0))
        tl.store(delta_out + row * HEADS + head, delta, mask=inside)


@triton.jit
def normalise(
    slots, x, residual, weight, bias, out, stride_out, eps,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr, LAYER: tl.constexpr, TO_POOL: tl.constexpr,
):  # fmt: skip
    """The LayerNorm of each group of x (+ residual), or the RMSNorm without its weight; into rows
    of `out`, or with TO_POOL into the rows of a pool."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:
        within = tl.arange(0, BLOCK)
        inside, columns = within < GROUP, group * GROUP + within
        place = row * GROUP * GROUPS + columns
        value = tl.load(x + place, mask=inside, other=0.0)
        if RESIDUAL:
            value += tl.load(residual + place, mask=inside, other=0.0)
        value = _normal(value, inside, GROUP, eps, LAYER)
        if LAYER:
            value *= tl.load(weight + columns, mask=inside, other=0.0)
            value += tl.load(bias + columns, mask=inside, other=0.0)
        to = (slot if TO_POOL else row) * stride_out
        tl.store(out + to + columns, value, mask=inside)


@triton.jit
def read_out(
    slots, asked, last_times, outputs, table, weight, bias, query_out,
    stride_outputs, low, high, first_knot, n_rows, eps,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, ASKED: tl.constexpr,
):  # fmt: skip
    """The query (B, D) of each row; the table's rows are scales, then shifts."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        width = GROUP * GROUPS
        time, last = tl.load(asked + row), tl.load(last_times + slot)
        usable = (time != NO_TIME) & (last != NO_TIME)
        gap = tl.where(usable, time - last, 0)
        at, part = _knots(gap, tl.where(usable, -1, UNKNOWN), low, high, first_knot, n_rows)
        for group in tl.static_range(GROUPS):
            within = tl.arange(0, BLOCK)
            inside, columns = within < GROUP, group * GROUP + within
            x = tl.load(outputs + slot * stride_outputs + columns, mask=inside, other=0.0)
            if ASKED:
                x *= 1 + _read(table, at, part, n_rows, 2 * width, columns, inside)
                x += _read(table, at, part, n_rows, 2 * width, width + columns, inside)
                x = _normal(x, inside, GROUP, eps, True)
                x *= tl.load(weight + columns, mask=inside, other=0.0)
                x += tl.load(bias + columns, mask=inside, other=0.0)
            tl.store(query_out + row * width + columns, x, mask=inside)

"""A block over several interactions of each of several users at once, from their states, in numpy.

What is pointwise in time is computed for the interactions themselves, side by side; only the
convolution and the scan, as in `ssd_scan`, have a row for each user, padded to the longest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.prepared import Floats, Layer

Ints = NDArray[np.int64]


class Places:
    """Where N interactions of B users stand in rows of length L.

    Args:
        lengths: (B), each at least 1; the first user's interactions come first.
    """

    def __init__(self, lengths: Ints) -> None:
        ends = np.cumsum(lengths)
        self.lengths, self.ends = lengths, ends - 1
        self.shape = len(lengths), int(lengths.max())
        self.users = np.repeat(np.arange(len(lengths)), lengths)
        self.positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        self.flat = self.users * self.shape[1] + self.positions
        self.full = len(self.flat) == self.shape[0] * self.shape[1]

    def padded(self, x: Floats) -> Floats:
        """(N, W) to (B, L, W), with zeros where there is none."""
        if not self.full:
            packed, x = x, np.zeros((self.shape[0] * self.shape[1], x.shape[1]), x.dtype)
            x[self.flat] = packed
        return x.reshape(*self.shape, -1)

    def packed(self, x: Floats) -> Floats:
        """(B, L, W) to (N, W)."""
        x = x.reshape(-1, x.shape[-1])
        return x if self.full else x[self.flat]


def advance(
    layer: Layer,
    x: Floats,
    mix: Floats | None,
    places: Places,
    h: Floats,
    tail: Floats,
    taps: Floats,
    bias: Floats,
    *,
    ends_only: bool,
) -> Floats:
    """The block's output (N, D), or (B, D) of each user's last with `ends_only`.

    Args:
        x: (N, D). mix: (N, H), what the gaps multiply step sizes by.
        h, tail: (B, H, P, N) and (B, K-1, E+2GN), changed to what comes after.
        taps, bias: of the convolution, (K, E+2GN) and (E+2GN).
    """
    c, (batch, length) = layer.config, places.shape
    groups, heads, n = c.n_groups, c.n_heads, c.d_state
    e, per_group = c.d_inner // groups, c.n_heads // groups
    half_z, xbc, dt = layer.project(x)
    extended = np.concatenate([tail, places.padded(xbc)], 1)
    mixed = extended[:, :length] * taps[0]
    for k in range(1, len(taps)):
        mixed += extended[:, k : k + length] * taps[k]
    mixed += bias
    mixed = layer.activated(mixed)
    last = places.lengths[:, None] + np.arange(len(taps) - 1)
    tail[:] = extended[np.arange(batch)[:, None], last]
    parts = mixed.reshape(batch, length, groups, -1)
    b = parts[..., e : e + n].swapaxes(1, 2)  # (B, G, L, N)
    xs = parts[..., :e].reshape(batch, length, heads, -1)
    delta = places.padded(layer.step_size(dt, mix))  # zero: nothing changes
    delta = delta.transpose(0, 2, 1)  # (B, H, L)
    # Differences of long sums lose their small digits in float32.
    total = np.cumsum(delta * layer.A[:, None].astype(np.float64), 2)
    to_end = np.exp((total[:, :, -1:] - total).astype(x.dtype))
    to_end *= delta
    weighted = (xs * to_end.transpose(0, 2, 1)[..., None]).reshape(batch, length, groups, e)
    added = np.matmul(weighted.transpose(0, 2, 3, 1), b)  # (B, G, e, N)
    if not ends_only:
        y = _within(xs, delta, total, b, parts[..., e + n :].swapaxes(1, 2))
        from_start = np.exp(total.astype(x.dtype))
        before = h.reshape(batch, groups, e, n).swapaxes(2, 3)
        carried = np.matmul(parts[..., e + n :].swapaxes(1, 2), before)  # (B, G, L, e)
        carried = carried.reshape(batch, groups, length, per_group, -1).swapaxes(2, 3)
        y += carried.reshape(y.shape) * from_start[..., None]
        out = places.packed(y.swapaxes(1, 2).reshape(batch, length, -1))
    h *= np.exp(total[:, :, -1].astype(x.dtype))[:, :, None, None]
    h += added.reshape(h.shape)
    if not ends_only:
        out += places.packed(xs.reshape(batch, length, -1)) * layer.skip
        return layer.finish(out, half_z, x)
    end = np.arange(batch), places.lengths - 1
    c_ = parts[end][..., e + n :, None]  # (B, G, N, 1)
    out = np.matmul(h.reshape(batch, groups, e, n), c_).reshape(batch, -1)
    out += xs[end].reshape(batch, -1) * layer.skip
    return layer.finish(out, half_z[places.ends], x[places.ends])


def _within(xs: Floats, delta: Floats, total: Floats, b: Floats, c: Floats) -> Floats:
    """What each position (B, H, L, P) gets from those up to it."""
    batch, _, length = delta.shape
    span = (total[:, :, :, None] - total[:, :, None, :]).astype(xs.dtype)
    # -inf, not a product with 0: exp of a positive difference could overflow.
    span += np.triu(np.full((length, length), -np.inf, xs.dtype), 1)
    mixing: Floats = np.exp(span, out=span)
    by_group = mixing.reshape(batch, b.shape[1], -1, length, length)
    by_group *= np.matmul(c, b.swapaxes(2, 3))[:, :, None]
    mixing *= delta[:, :, None, :]
    out: Floats = np.matmul(mixing, xs.swapaxes(1, 2))
    return out

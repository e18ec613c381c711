"""A model's layers for numpy on a CPU, with their weights prepared: the same sums, cheaper.

For arrays this small an operation costs more than its arithmetic, and numpy's cost a third of
torch's; only where a batch makes the arithmetic the larger part does torch do it, on the same
memory. What does not change is computed once: -exp(A_log) and the bound of the step size are
numbers, biases and scales are folded into their neighbours, half of a silu's input into the weights
before it. Numbers are arrays, too: numpy takes twice as long where it has to make one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.groups import GroupedLayerNorm
from model.layers import FACTOR_SPAN, MAX_DECAY, FeedForward, TimeAwareSSD

Floats = NDArray[Any]
"""Of the weights' precision."""

BY_TORCH_FROM = 12
"""Rows from which on torch does what is largest."""


class Layer:
    """What is pointwise in time of one block: the time-aware SSD's projections and step sizes, and
    its feed-forward network."""

    def __init__(self, ssd: TimeAwareSSD, ffn: nn.Module) -> None:
        c = self.config = ssd.config
        groups = c.n_groups
        self._product = ssd.gap_table is not None and c.gap_mix == "product"
        self._dt_bias, in_bias = array(ssd.dt_bias), array(ssd.in_proj.bias).copy()
        self._cuts = c.d_inner // groups, (c.d_inner + c.d_xbc) // groups
        by_group = in_bias.reshape(groups, -1)
        if not self._product:
            by_group[:, self._cuts[1] :] += self._dt_bias.reshape(groups, -1)
        by_group[:, : self._cuts[0]] *= 0.5
        in_weight = torch.unflatten(ssd.in_proj.weight.detach(), 0, (groups, -1)).clone()
        in_weight[:, : self._cuts[0]] *= 0.5
        self._in = Linear(in_weight.flatten(0, 1), in_bias, groups)
        self.A = -np.exp(array(ssd.A_log))
        self._bound = MAX_DECAY / -self.A
        self.skip = array(ssd.D).repeat(c.head_dim)
        dtype = self.A.dtype
        self._zero, self._one = np.zeros((), dtype), np.ones((), dtype)
        self._norm = _Variance(ssd.norm.eps, c.d_inner // groups, dtype)
        scale = ssd.norm.weight.reshape(groups, 1, -1)
        weight = (torch.unflatten(ssd.out_proj.weight, 0, (groups, -1)) * scale).flatten(0, 1)
        self._out = Linear(weight, array(ssd.out_proj.bias), groups)
        self._out_norm, self._residual = Norm(ssd.out_norm), ssd.residual
        self.activated = Activation(c.activation, dtype)
        self._ffn = None
        if isinstance(ffn, FeedForward):
            first, second = (Linear(fc.weight, array(fc.bias), groups) for fc in (ffn.fc1, ffn.fc2))
            self._ffn = first, second, Norm(ffn.norm)

    def project(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Half the gate (N, E), the convolution's input (N, E+2GN) and what the step size is made
        of (N, H), of x (N, D)."""
        projected, (e, end) = self._in(x), self._cuts
        if self.config.n_groups == 1:
            return projected[:, :e], projected[:, e:end], projected[:, end:]
        parts, n = projected.reshape(len(x), self.config.n_groups, -1), len(x)
        return (
            parts[:, :, :e].reshape(n, -1),
            parts[:, :, e:end].reshape(n, -1),
            parts[:, :, end:].reshape(n, -1),
        )

    def step_size(self, dt: Floats, mix: Floats | None) -> Floats:
        """(N, H) of `project`'s and of what the gap multiplies it by (N, H)."""
        if self._product:
            assert mix is not None
            delta: Floats = np.logaddexp(self._zero, dt * mix + self._dt_bias)
        else:
            delta = np.logaddexp(self._zero, dt)
            if mix is not None:
                delta *= mix
        return np.minimum(delta, self._bound, out=delta)

    def finish(self, y: Floats, half_z: Floats, x: Floats) -> Floats:
        """The block's output (N, D) of the SSD's (N, E), which is changed, the gate and input."""
        gate = np.tanh(half_z)
        gate += self._one
        gate *= half_z
        y *= gate
        whole = y.reshape(len(y), self.config.n_groups, -1)
        whole /= self._norm.root(whole)
        out = self._out(y)
        if self._residual:
            out += x
        x = self._out_norm(out)
        if self._ffn is not None:
            first, second, norm = self._ffn
            inner = second(self.activated(first(x)))
            inner += x
            x = norm(inner)
        return x


class Linear:
    """A `GroupedLinear`: x W^T + b in each group."""

    def __init__(self, weight: Tensor, bias: Floats, groups: int) -> None:
        by_group = torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2)  # (G, in, out)
        self._groups, self._bias = groups, bias
        self._weight = array(by_group[0] if groups == 1 else by_group)
        self._torch = torch.from_numpy(self._bias), torch.from_numpy(self._weight)

    def __call__(self, x: Floats) -> Floats:
        out: Floats
        if self._groups > 1:
            parts = x.reshape(len(x), self._groups, -1).swapaxes(0, 1)
            out = np.matmul(parts, self._weight).swapaxes(0, 1).reshape(len(x), -1)
        elif len(x) < BY_TORCH_FROM:
            out = np.dot(x, self._weight)
        else:
            bias, weight = self._torch
            return torch.addmm(bias, torch.from_numpy(x), weight).numpy()
        out += self._bias
        return out


class Norm:
    """A `GroupedLayerNorm`."""

    def __init__(self, norm: GroupedLayerNorm) -> None:
        self._weight, self._bias = array(norm.weight), array(norm.bias)
        self._groups = norm.groups
        self._variance = _Variance(norm.eps, len(self._weight) // norm.groups, self._weight.dtype)

    def __call__(self, x: Floats) -> Floats:
        parts = x.reshape(len(x), self._groups, -1)
        normed: Floats = parts - self._variance.mean(parts)
        normed /= self._variance.root(normed)
        out = normed.reshape(x.shape)
        out *= self._weight
        out += self._bias
        return out


class _Variance:
    def __init__(self, eps: float, width: int, dtype: Any) -> None:
        self._eps, self._width = np.array(eps, dtype), np.array(width, dtype)

    def mean(self, x: Floats) -> Floats:
        total: Floats = np.add.reduce(x, -1, keepdims=True)
        total /= self._width
        return total

    def root(self, x: Floats) -> Floats:
        """Of the mean square and eps."""
        mean = self.mean(x * x)
        mean += self._eps
        return np.sqrt(mean, out=mean)


class Activation:
    """hardswish or silu."""

    def __init__(self, name: str, dtype: Any) -> None:
        self._hardswish = name == "hardswish"
        numbers = (0, 1 / 6, 0.5, 1, 3, 6)
        self._zero, self._sixth, self._half, self._one, self._three, self._six = (
            np.array(number, dtype) for number in numbers
        )

    def __call__(self, x: Floats) -> Floats:
        if self._hardswish:
            out: Floats = x + self._three
            np.maximum(out, self._zero, out=out)
            np.minimum(out, self._six, out=out)
            out *= x
            out *= self._sixth
            return out
        out = x * self._half  # x / (1 + exp(-x)), but nothing in it can overflow
        np.tanh(out, out=out)
        out += self._one
        out *= x
        out *= self._half
        return out


def factor(mixes: Floats) -> Floats:
    """What a gap's mixes multiply step sizes by."""
    out: Floats = np.tanh(mixes)
    out *= FACTOR_SPAN
    return np.exp(out, out=out)


def array(weight: Tensor) -> Floats:
    made: Floats = weight.detach().contiguous().numpy()
    return made

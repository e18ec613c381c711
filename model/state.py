"""The recurrent state of users, and its bytes.

A state is a set of named tensors whose first dimension is the user. Its layout says what they
are; the packed form carries the layout's hash and a checksum, so bytes of another model, or
damaged ones, are refused instead of believed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Precision = Literal["float32", "float16"]

_MAGIC = b"T4RS"
_VERSION = 1
_HEADER = struct.Struct("<4sBB8sI8s")  # magic, version, precision, layout, extra's length, sum
HEADER_BYTES = _HEADER.size
"""Before what was packed beside a state."""
_PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class StateBytesError(ValueError):
    """Packed bytes that are not a sound state of this layout; the message says why."""


@dataclass(frozen=True)
class Part:
    """One tensor of a state: its shape without the user dimension, and its initial value."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: int = 0

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class State:
    """States of B users: `parts[name]` is (B, *shape)."""

    def __init__(self, parts: dict[str, Tensor]) -> None:
        self.parts = parts

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    @property
    def batch(self) -> int:
        return next(iter(self.parts.values())).shape[0]

    def rows(self, index: Tensor) -> State:
        """A copy of the rows at `index` (n) int64."""
        return State({name: part.index_select(0, index) for name, part in self.parts.items()})

    def write(self, index: Tensor, source: State) -> None:
        """Overwrites the rows at `index` (n) with those of `source`, in place."""
        for name, part in self.parts.items():
            part.index_copy_(0, index, source[name].to(part.device))

    def to(self, device: torch.device | str) -> State:
        return State({name: part.to(device) for name, part in self.parts.items()})

    def double(self) -> State:
        """Floating parts as float64, for exactness tests."""
        return State({n: p.double() if p.is_floating_point() else p for n, p in self.parts.items()})


@dataclass(frozen=True)
class StateLayout:
    """What one user's state consists of."""

    parts: tuple[Part, ...]

    @property
    def hash(self) -> bytes:
        """8 bytes that change with any name, shape, type or order."""
        text = ";".join(f"{p.name}:{p.shape}:{p.dtype}" for p in self.parts)
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    def nbytes(self, precision: Precision = "float32") -> int:
        """Bytes of one user's packed parts, without the header."""
        return sum(p.size * _numpy_dtype(p, precision).itemsize for p in self.parts)

    def new(self, batch: int, device: torch.device | str = "cpu") -> State:
        """Initial states of `batch` users."""
        return State(
            {
                p.name: torch.full((batch, *p.shape), p.initial, dtype=p.dtype, device=device)
                for p in self.parts
            }
        )

    def fits(self, state: State, precision: Precision) -> Tensor:
        """Which users' values survive the precision: (B) bool. NaN and overflow do not."""
        sound = torch.ones(state.batch, dtype=torch.bool, device=state[self.parts[0].name].device)
        for part in self.parts:
            if part.dtype.is_floating_point:
                finite = state[part.name].to(_TORCH_DTYPES[precision]).isfinite()
                sound &= finite.reshape(state.batch, part.size).all(1)
        return sound

    def rounded(self, state: State, precision: Precision) -> State:
        """The state as it comes back from its packed form."""
        dtype = _TORCH_DTYPES[precision]
        return State(
            {
                n: p.to(dtype).to(p.dtype) if p.is_floating_point() else p
                for n, p in state.parts.items()
            }
        )

    def pack(
        self, state: State, extras: Sequence[bytes] | None = None, precision: Precision = "float32"
    ) -> list[bytes]:
        """Each user's bytes.

        Args:
            extras: for each user, bytes to carry along under the same checksum.
            precision: of floating parts; whole numbers are always kept exactly.

        Raises:
            StateBytesError: a value is not finite, or not in this precision.
        """
        if not bool(self.fits(state, precision).all()):
            raise StateBytesError(f"a value of the state is not finite in {precision}")
        columns = []
        for p in self.parts:
            dtype = _TORCH_DTYPES[precision] if p.dtype.is_floating_point else p.dtype
            values = state[p.name].detach().to("cpu", dtype).contiguous().numpy()
            columns.append(values.astype(_numpy_dtype(p, precision), copy=False))
        packed = []
        for user in range(state.batch):
            extra = extras[user] if extras is not None else b""
            body = b"".join([extra, *(column[user].tobytes() for column in columns)])
            packed.append(_header(precision, self.hash, len(extra), body) + body)
        return packed

    def unpack(self, data: bytes) -> tuple[State, bytes]:
        """One user's state (B = 1), and the extra bytes packed with it.

        Raises:
            StateBytesError: truncated, damaged, of another layout or of a newer version.
        """
        if len(data) < _HEADER.size:
            raise StateBytesError(f"{len(data)} bytes are too few for a state")
        magic, version, code, layout, extra_size, _ = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise StateBytesError("not a packed state")
        if version != _VERSION or code >= len(_PRECISIONS):
            raise StateBytesError(f"packed by another version ({version})")
        if layout != self.hash:
            raise StateBytesError("of a model with another state layout")
        precision = _PRECISIONS[code]
        if len(data) != _HEADER.size + extra_size + self.nbytes(precision):
            raise StateBytesError("truncated or too long")
        body = data[_HEADER.size :]
        if data[: _HEADER.size] != _header(precision, layout, extra_size, body):
            raise StateBytesError("damaged: the checksum differs")
        parts, offset = {}, extra_size
        for p in self.parts:
            values = np.frombuffer(body, _numpy_dtype(p, precision), p.size, offset)
            offset += values.nbytes
            tensor = torch.from_numpy(values.astype(_numpy_dtype(p, "float32")))
            parts[p.name] = tensor.reshape(1, *p.shape)
        return State(parts), body[:extra_size]


def _header(precision: Precision, layout: bytes, extra_size: int, body: bytes) -> bytes:
    head = (_MAGIC, _VERSION, _PRECISIONS.index(precision), layout, extra_size)
    seal = hashlib.blake2b(repr(head).encode(), digest_size=8)
    seal.update(body)
    return _HEADER.pack(*head, seal.digest())


def _numpy_dtype(part: Part, precision: Precision) -> np.dtype[np.generic]:
    if part.dtype == torch.int64:
        return np.dtype("<i8")
    return np.dtype("<f2" if precision == "float16" else "<f4")

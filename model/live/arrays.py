"""Named arrays as bytes and back, without holding up other threads.

A library's own functions copy within Python's lock, which stops a service for a second a gigabyte;
NumPy copies outside of it.

Layout: length of the header 8 | header, JSON: dtype and shape by name | the arrays, in its order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_SIZE = np.dtype("<u8")
_KINDS = ("|u1", "<i4", "<i8", "<f4", "<f8")
Array = npt.NDArray[Any]


def packed(arrays: Mapping[str, Array]) -> memoryview:
    about = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    header = json.dumps(about).encode()
    place = _SIZE.itemsize + len(header)
    data = np.empty(place + sum(array.nbytes for array in arrays.values()), np.uint8)
    data[:place] = np.frombuffer(_SIZE.type(len(header)).tobytes() + header, np.uint8)
    for array in arrays.values():
        data[place : place + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        place += array.nbytes
    return data.data


def unpacked(data: memoryview) -> dict[str, Array]:
    """The arrays, parts of `data`.

    Raises:
        AttributeError, RecursionError, TypeError, ValueError: it is damaged.
    """
    place = _SIZE.itemsize
    (length,) = np.frombuffer(data, _SIZE, 1).tolist()
    header = json.loads(bytes(data[place : place + length]))
    place += length
    arrays: dict[str, Array] = {}
    for name, (kind, shape) in header.items():
        if kind not in _KINDS:
            raise ValueError(f"{name} is of {kind}")
        array = np.frombuffer(data, kind, int(np.prod(shape)), place).reshape(shape)
        arrays[name] = array
        place += array.nbytes
    if place != len(data):
        raise ValueError(f"{len(data)} bytes, not {place}")
    return arrays

"""The tensors of an artefact: safetensors files, read by what the architecture has."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.items import Items
from model.plain_file import open_plain
from model.scoring import Scoring
from model.strict_json import parse, shown
from model.tim4rec import TiM4Rec, outline

HEADER_BYTES = 1 << 22
"""Most of the part of a file that describes the rest; a thousandth of it is usual."""
Tensors = Mapping[str, Tensor]
_DAMAGED = "damaged, or no safetensors file"


class WeightsError(ValueError):
    """A file of weights that can't be used. One line."""


def read_weights(path: Path, config: ModelConfig, sha256: str) -> TiM4Rec:
    """A model with the weights of a file.

    What the file claims is compared with the architecture and with its size before memory is taken
    for it. It is read once, so what was hashed is what is used, whoever writes to it meanwhile.

    Raises:
        WeightsError: it is damaged, does not fit, or has another hash.
        OSError: it can't be read.
    """
    with _checked(path, outline(config).state_dict()) as fill:
        model = TiM4Rec(config)
        fill(model.state_dict(), sha256)
    return model


def read_scoring(path: Path, items: Items, width: int, sha256: str) -> Scoring:
    """The scoring of these items of a file, as `read_weights` reads; `width`: D."""
    shape = (len(items) + 1, width)
    vectors, bias = (torch.empty(size, device="meta") for size in (shape, shape[:1]))
    meta = Scoring(items, vectors, bias)
    with _checked(path, meta.tensors()) as fill:
        scoring = Scoring(items, torch.empty(shape), torch.empty(shape[:1]))
        fill(scoring.tensors(), sha256)
    return scoring


@contextmanager
def _checked(path: Path, wanted: Tensors) -> Iterator[Callable[[Tensors, str], None]]:
    """Opens a file that has `wanted`, as it says; what fills tensors with it, by its SHA-256."""
    with open_plain(path, within=path.parent) as file:
        data = os.fstat(file.fileno()).st_size - 8
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if length > min(HEADER_BYTES, data):
            raise WeightsError(_DAMAGED)
        text = file.read(length)
        names = _in_order(text, wanted, data - length)

        def fill(tensors: Tensors, sha256: str) -> None:
            digest = hashlib.sha256(head + text)
            for name in names:
                part = tensors[name].numpy().data.cast("B")
                if file.readinto(part) < len(part):
                    raise WeightsError(_DAMAGED)
                digest.update(part)
            if digest.hexdigest() != sha256:
                raise WeightsError("its hash is not the one in config.json: damaged")
            for name, tensor in tensors.items():
                if not all(end.isfinite() for end in tensor.aminmax()):
                    raise WeightsError(f"{name} has values that are not finite: training diverged")

        try:
            yield fill
        except RuntimeError as error:
            raise WeightsError(f"no memory for them: {' '.join(str(error).split())}") from None


def weights_bytes(config: ModelConfig) -> int:
    """Most bytes of a file of an architecture's weights."""
    weights: int = sum(t.nbytes for t in outline(config).state_dict().values())
    return 8 + HEADER_BYTES + weights


def scoring_bytes(n_items: int, width: int) -> int:
    """Most bytes of a file of the scoring of so many items; `width`: D."""
    return 8 + HEADER_BYTES + 4 * (n_items + 1) * (width + 1)


def _in_order(text: bytes, tensors: Tensors, data: int) -> list[str]:
    """The names of the tensors as they lie in a file whose first part is `text`, and whose rest
    has `data` bytes; no gap is between them.

    Raises:
        WeightsError: they are not these tensors, each of float32.
    """
    try:
        header = parse(text)
        header.pop("__metadata__", None)
        found = {name: [one["dtype"], *one["shape"]] for name, one in header.items()}
        places = sorted((one["data_offsets"], name) for name, one in header.items())
    except (ValueError, AttributeError, KeyError, TypeError):
        raise WeightsError(_DAMAGED) from None
    wanted = {name: ["F32", *tensor.shape] for name, tensor in tensors.items()}
    for name in (*wanted, *found):
        if found.get(name) != wanted.get(name):
            raise WeightsError(
                f"does not fit the architecture: {shown(name)} is {_described(found.get(name))}, "
                f"and must be {_described(wanted.get(name))}"
            )
    end = 0
    for place, name in places:
        begin, end = end, end + tensors[name].nbytes
        if place != [begin, end]:
            raise WeightsError(_DAMAGED)
    if end != data:
        raise WeightsError(f"damaged: {data:,} bytes of weights, not {end:,}")
    return [name for _, name in places]


def _described(kind: list[Any] | None) -> str:
    return "missing" if kind is None else f"{shown(kind[0])} {reprlib.repr(kind[1:])}"

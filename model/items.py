"""The vocabulary of a model: what each item index stands for.

As JSON, an object of columns: `ids`, `popularity`, and `titles` and `categories` or null.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from model.strict_json import parse

LONGEST_ID = 256
"""Bytes of UTF-8 that an id may have."""
ITEM_BYTES = 1 << 14
"""Most of its JSON for each item; a hundredth of it is usual."""
_COLUMNS = {
    "ids": list,
    "popularity": list,
    "titles": list | None,
    "categories": list | None,
}


class ItemsError(ValueError):
    """A vocabulary that can't be used; one line that says why."""


@dataclass(frozen=True)
class Items:
    """The vocabulary: entry i describes item index i + 1.

    Attributes:
        ids: the caller's own strings, unique.
        popularity: (V,) int64, interactions of each item in the training part.
        titles, categories: one each an item, or None when there is no item table.
    """

    ids: list[str]
    popularity: NDArray[np.int64]
    titles: list[str | None] | None = None
    categories: list[list[str]] | None = None

    def __post_init__(self) -> None:
        _require_each("id", self.ids, _id_fault)
        if len(set(self.ids)) != len(self.ids):
            raise ItemsError("items: an id stands there twice")
        for name, column in (
            ("popularity", self.popularity),
            ("titles", self.titles),
            ("categories", self.categories),
        ):
            if column is not None and len(column) != len(self.ids):
                raise ItemsError(
                    f"items: {len(column)} {name} for {len(self.ids)} ids: one each is needed"
                )
        if not np.issubdtype(self.popularity.dtype, np.integer) or (self.popularity < 0).any():
            raise ItemsError("items: popularity must be whole numbers from 0 on")
        _require_each("title", self.titles or (), _title_fault)
        _require_each("categories", self.categories or (), _categories_fault)

    def __len__(self) -> int:
        return len(self.ids)

    def to_columns(self) -> dict[str, object]:
        """As JSON has them."""
        return {
            "ids": self.ids,
            "popularity": self.popularity.tolist(),
            "titles": self.titles,
            "categories": self.categories,
        }


def items_bytes(n_items: int) -> int:
    """Most bytes of the JSON of so many items."""
    return (1 << 20) + n_items * ITEM_BYTES


def read_items(content: bytes, n_items: int) -> Items:
    """Of JSON. Raises ValueError where it is not such an object, or not of so many items."""
    table = parse(content)
    if not isinstance(table, dict):
        raise ItemsError("must hold a JSON object")
    for name, kinds in _COLUMNS.items():
        if not isinstance(table.get(name, ""), kinds):
            raise ItemsError(f"must have a list of {name}")
    if len(table["ids"]) != n_items:
        raise ItemsError(f"{len(table['ids'])} items, the model has {n_items}")
    _require_each("popularity", table["popularity"], _count_fault)
    counts = np.array(table["popularity"], dtype=np.int64)
    return Items(table["ids"], counts, table["titles"], table["categories"])


def _require_each(name: str, values: Iterable[object], fault: Callable[[Any], str | None]) -> None:
    for place, value in enumerate(values, 1):
        if found := fault(value):
            raise ItemsError(f"items: {name} {place} {found}")


def _id_fault(value: object) -> str | None:
    if not _is_text(value):
        return f"is not a string of Unicode: {reprlib.repr(value)}"
    size = len(value.encode())
    if 1 <= size <= LONGEST_ID:
        return None
    return f"has {size} bytes of UTF-8, 1 to {LONGEST_ID} fit: {reprlib.repr(value)}"


def _title_fault(value: object) -> str | None:
    fits = value is None or _is_text(value)
    return None if fits else f"is neither a string nor null: {reprlib.repr(value)}"


def _categories_fault(value: object) -> str | None:
    fits = isinstance(value, list) and all(map(_is_text, value))
    return None if fits else f"are no list of strings: {reprlib.repr(value)}"


def _count_fault(value: object) -> str | None:
    fits = type(value) is int and 0 <= value < 2**63
    return None if fits else f"is no count: {reprlib.repr(value)}"


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is Unicode: half of a pair of surrogates is not."""
    try:
        return isinstance(value, str) and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False

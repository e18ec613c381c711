"""What the items of a vocabulary have in common: features of titles, categories, attributes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from model.content import MOST_KNOWN, About, Int64s, Scalar, feature_hashes, places_in
from training.table_files import NULL_WORDS

LEAST_ITEMS = 2
"""A feature of fewer items is what their ids' own vectors say already."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemFeatures:
    """Names: V items, F features, N features of all items.

    hashes: (F) rising; offsets: (V + 1), places: (N), item i + 1 has the features at
    places[offsets[i] : offsets[i + 1]] of `hashes`.
    """

    hashes: Int64s
    offsets: Int64s
    places: Int64s

    @classmethod
    def of(cls, item_ids: Sequence[str], table: pl.DataFrame) -> ItemFeatures | None:
        """table: as `read_items` has it. None where no feature is of several of these items."""
        about = abouts(table)
        lists = [feature_hashes(about.get(item, About())) for item in item_ids]
        count = Counter(own for hashes in lists for own in hashes)
        kept = [own for own, n in count.most_common(MOST_KNOWN) if n >= LEAST_ITEMS]
        if not kept:
            return None
        known = np.sort(np.array(kept, np.int64))
        places = [places_in(known, hashes) for hashes in lists]
        offsets = np.cumsum([0, *map(len, places)], dtype=np.int64)
        return cls(known, offsets, np.concatenate(places))


def abouts(table: pl.DataFrame) -> dict[str, About]:
    """What an item table says, by id."""
    names = [name for name in table.columns if name not in ("item_id", "title", "categories")]
    ordered = table.select("item_id", "title", "categories", *names)
    return {
        item: About(title, categories or (), _values(names, cells))
        for item, title, categories, *cells in ordered.iter_rows()
    }


def _values(names: Sequence[str], cells: Sequence[object]) -> dict[str, list[Scalar]]:
    return {name: list(_scalars(cell)) for name, cell in zip(names, cells, strict=True)}


def _scalars(cell: object) -> Iterator[Scalar]:
    """What a cell says; an empty one nothing."""
    if isinstance(cell, list):
        for inner in cell:
            yield from _scalars(inner)
    elif isinstance(cell, int | float):
        if math.isfinite(cell):
            yield cell
    elif cell is not None and cell not in ("", *NULL_WORDS):
        yield str(cell)

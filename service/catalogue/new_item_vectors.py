"""The vectors of all items that came after the training."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.content import About, Content
from service.catalogue.cold_start import ColdStart, like, summed
from service.catalogue.item import Item
from service.catalogue.item_table import Change, ItemTable
from service.catalogue.turns import Steps, in_turns

_BLOCK, _LARGE_BYTES = 8192, 2_000_000


class NewItemVectors:
    """Args:
    weight: (V + 1, D) the vectors of the trained items, row 0 the padding's.
    content: what items are given vectors by; None: their categories, by a regression.
    """

    def __init__(self, table: ItemTable, weight: Tensor, content: Content | None) -> None:
        self._table, self._weight, self._content = table, weight.detach(), content
        self._blocks: list[NDArray[np.float32]] = []  # (_BLOCK, D) each
        self._cold: ColdStart | None = None
        self._without_vector: set[int] = set()
        table.watchers.append(self._change)

    @cached_property
    def _known(self) -> NDArray[np.float32]:
        """(V, D)"""
        known: NDArray[np.float32] = self._weight.float().cpu().numpy()[1:]
        return known

    @property
    def outdated(self) -> bool:
        """Whether `refreshed` has something to do."""
        newer = len(self._table) > self._table.trained
        regression = self._content is None and self._cold is None
        return bool(self._without_vector) or (newer and regression)

    async def refreshed(self) -> Tensor:
        """(n, D) of the n newer rows that there are when it begins, on the model's device."""
        trained, size = self._table.trained, len(self._table)
        rows: Iterable[int] = list(self._without_vector)
        if self._content is None and self._cold is None:
            rows = range(trained + 1, size + 1)
            solved = await in_turns(summed(self._known, self._table.categories))
            self._cold = await asyncio.to_thread(solved)
        await in_turns(self._place(rows))
        if sum(block.nbytes for block in self._blocks) < _LARGE_BYTES:
            return self._copied(size - trained)
        return await asyncio.to_thread(self._copied, size - trained)

    def content_of(self, row: int) -> NDArray[np.float32] | None:
        """(D) What a new item's features add up to; None: they don't make its vector, or say
        nothing. Any thread may ask."""
        item = self._table.items.get(row)
        if self._content is None or row <= self._table.trained or item is None:
            return None
        if self._similar(item):
            return None
        own = self._content.part_of(_about(item))
        return own if own.any() else None

    def _similar(self, item: Item) -> list[int]:
        """The trained rows that it is said to be similar to."""
        found = [row for item_id in item.similar_to if (row := self._table.row(item_id))]
        return [row for row in found if row <= self._table.trained]

    def _place(self, rows: Iterable[int]) -> Steps[None]:
        table = self._table
        for row in rows:
            block, place = divmod(row - table.trained - 1, _BLOCK)
            while block >= len(self._blocks):
                self._blocks.append(np.zeros((_BLOCK, self._weight.shape[1]), np.float32))
            item = table.items.get(row)
            if item is None:
                continue
            self._blocks[block][place] = self._vector(item, self._similar(item))
            yield
        self._without_vector.clear()

    def _vector(self, item: Item, similar: Sequence[int]) -> NDArray[np.float32]:
        if self._cold is not None:
            return self._cold.vector(similar, item.categories or ())
        if similar:
            return like(self._known, similar)
        assert self._content is not None
        own = self._content.vector(_about(item))
        # Where items have a bias it is a column more.
        return np.pad(own, (0, self._weight.shape[1] - len(own)))

    def _copied(self, count: int) -> Tensor:
        own = np.concatenate(self._blocks)[:count]
        return torch.from_numpy(own).to(self._weight.device, self._weight.dtype)

    def _change(self, change: Change) -> None:
        if change.row > self._table.trained:
            self._without_vector.add(change.row)
        elif "category" in change.names:
            self._cold = None  # and all vectors are to be found anew


def _about(item: Item) -> About:
    return About(item.title, item.categories or (), item.values)

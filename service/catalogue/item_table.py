"""The items as one process holds them: their rows, and what the records say over the artefact.

Rows are given out once: 1 to V are the items of the model's vocabulary, the next ones items that
came later, in the order in which this process heard of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.items import Items
from service.catalogue.hash_index import HashIndex
from service.catalogue.item import FIELDS, Item, Scalar
from service.catalogue.view import Flags

NEVER = 2**62
_NOTHING = Item()
_DELETED = Item(hidden=True)


@dataclass(frozen=True)
class Change:
    """A row's record before and now. `names`: of the fields and attributes whose values differ."""

    row: int
    before: Item | None
    after: Item | None
    names: list[str]


class ItemTable:
    """Args:
        base: the items of the model's artefact.

    Attributes:
        ids, titles: of row 1 on.
        trained: the number of rows of the vocabulary.
        hashes: of the ids.
        items: the records, by row.
        newer_recorded: how many of the newer rows have one.
        version: a number that is larger whenever what there is has changed; of this process.
        watchers: called with each change.
    """

    def __init__(self, base: Items) -> None:
        self._base = base
        self.trained, self.version = len(base), 0
        self.ids = list(base.ids)
        self.titles: list[str | None] = list(base.titles or [None] * self.trained)
        self.items: dict[int, Item] = {}
        self.newer_recorded = 0
        self.watchers: list[Callable[[Change], object]] = []
        self.hashes = HashIndex(base.ids)
        self._rows = {item_id: row for row, item_id in enumerate(base.ids, 1)}
        self._opens: NDArray[np.int64] = np.full(self.trained + 1, -NEVER)
        self._closes: NDArray[np.int64] = np.full(self.trained + 1, NEVER)
        self._noted: Flags = np.zeros(self.trained + 1, np.bool_)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def row(self, item_id: str) -> int | None:
        """The item's row; one that was deleted keeps it."""
        return self._rows.get(item_id)

    def exists(self, row: int) -> bool:
        return row <= self.trained or row in self.items

    def of_artefact(self, row: int) -> tuple[str | None, tuple[str, ...]]:
        """Title and categories of a row, as the artefact has them."""
        if row > self.trained:
            return None, ()
        titles, categories = self._base.titles, self._base.categories
        title = titles[row - 1] if titles else None
        return title, tuple(categories[row - 1]) if categories else ()

    def categories(self, row: int) -> tuple[str, ...]:
        own = self.items.get(row, _NOTHING).categories
        return self.of_artefact(row)[1] if own is None else own

    def attributes(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """`Item.chosen` of a row's record, with its categories where `category` is among the
        names."""
        found = self.items.get(row, _NOTHING).chosen(names)
        if "category" in names and (categories := self.categories(row)):
            found["category"] = list(categories)
        return found

    def values(self, row: int, name: str) -> tuple[Scalar, ...]:
        """An item's values of a field or attribute, as filters compare them."""
        if not self.exists(row):
            return ()
        if name == "id":
            return (self.ids[row - 1],)
        if name == "title":
            title = self.titles[row - 1]
            return () if title is None else (title,)
        if name == "category":
            return self.categories(row)
        return self.items.get(row, _NOTHING).values.get(name, ())

    def blocked(self, size: int, now_ms: int) -> tuple[Flags, int]:
        """(size + 1,) what nobody may be given now, and when that changes."""
        opens, closes = self._opens[: size + 1], self._closes[: size + 1]
        later = np.concatenate([opens[opens > now_ms], closes[closes > now_ms]])
        return (now_ms < opens) | (now_ms >= closes), int(later.min(initial=NEVER))

    def is_noted(self, row: int) -> bool:
        """Whether nothing is known of the item but that it has had events."""
        return bool(self._noted[row])

    def noted(self, size: int) -> Flags:
        """(size + 1,) of which rows that is so."""
        return self._noted[: size + 1].copy()

    def note(self, item_id: str) -> None:
        """Gives an item a row, though it has no record, if it has none."""
        if self.row(item_id) is None:
            row = self._append(item_id)
            self._opens[row], self._noted[row] = NEVER, True
            for watcher in self.watchers:
                watcher(Change(row, None, None, []))

    def set(self, item_id: str, item: Item | None) -> None:
        """Gives an item this record, or takes it away."""
        row = self.row(item_id)
        if row is None:
            if item is None:
                return
            row = self._append(item_id)
        before, fields = self.items.get(row), [self.values(row, name) for name in FIELDS]
        if item is None:
            self.items.pop(row, None)
        else:
            self.items[row] = item
        self._noted[row] = False
        newer = row > self.trained
        self.newer_recorded += newer * ((item is not None) - (before is not None))
        shown = item or (_DELETED if newer else _NOTHING)
        self.titles[row - 1] = self.of_artefact(row)[0] if shown.title is None else shown.title
        opens, closes = shown.available_from, shown.available_until
        self._opens[row] = NEVER if shown.hidden else -NEVER if opens is None else opens
        self._closes[row] = NEVER if closes is None else closes
        old, new = (before or _NOTHING).values, (item or _NOTHING).values
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        names += [
            name
            for name, values in zip(FIELDS, fields, strict=True)
            if self.values(row, name) != values
        ]
        for watcher in self.watchers:
            watcher(Change(row, before, item, names))

    def _append(self, item_id: str) -> int:
        self.ids.append(item_id)
        self.titles.append(None)
        row = self._rows[item_id] = len(self.ids)
        self.hashes.add(item_id, row)
        if row >= len(self._opens):  # twice as many
            self._opens = np.pad(self._opens, (0, row), constant_values=-NEVER)
            self._closes = np.pad(self._closes, (0, row), constant_values=NEVER)
            self._noted = np.pad(self._noted, (0, row))
        return row

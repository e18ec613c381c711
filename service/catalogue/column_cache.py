"""Columns of the fields and attributes that filters name."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import chain, islice

from service.catalogue.item import FIELDS
from service.catalogue.item_columns import Column
from service.catalogue.item_table import Change, ItemTable
from service.catalogue.turns import Shared, Steps

BYTES, BYTES_A_ROW = 100_000_000, 1000
"""What the columns may take, the larger of the two."""
_AT_ONCE = 256
_NO_COLUMN = Column()


class ColumnCache:
    """Makes a column when it is first asked for, and keeps it as the table is; those used longest
    ago go where all are too large."""

    def __init__(self, table: ItemTable) -> None:
        self._table = table
        self._names = Counter[str]()  # how many items have each attribute
        self._columns: OrderedDict[str, tuple[Column, Shared[None]]] = OrderedDict()
        table.watchers.append(self._change)

    @property
    def names(self) -> Iterable[str]:
        """Of all fields and attributes."""
        return chain(FIELDS, self._names)

    def has(self, name: str) -> bool:
        """Whether an item has a value of it."""
        return name in FIELDS or name in self._names

    def has_within(self, name: str) -> bool:
        """Whether an item has an object of this name with attributes in it."""
        return any(one.startswith(f"{name}.") for one in self._names)

    def column(self, name: str) -> Steps[Column]:
        if not self.has(name):
            return _NO_COLUMN
        if name not in self._columns:
            new = Column()
            self._columns[name] = new, Shared(self._fill(new, name))
        self._columns.move_to_end(name)
        column, filling = self._columns[name]
        yield from filling.result()
        return column

    def _fill(self, column: Column, name: str) -> Steps[None]:
        """Puts all items' values into a column; what changes meanwhile is put there, too."""
        table = self._table
        rows = iter(range(1, len(table) + 1) if name in FIELDS else list(table.items))
        while some := list(islice(rows, _AT_ONCE)):
            for row in some:
                if values := table.values(row, name):
                    column.put(row, values)
            yield
        most = max(BYTES, BYTES_A_ROW * len(table))
        left = sum(column.nbytes for column, _ in self._columns.values())
        while left > most and len(self._columns) > 1:
            _, (column, _) = self._columns.popitem(last=False)
            left -= column.nbytes

    def _change(self, change: Change) -> None:
        old, new = (set(one.values if one else ()) for one in (change.before, change.after))
        self._names.update(new - old)
        for name in old - new:
            self._names[name] -= 1
            if not self._names[name]:
                del self._names[name]
                self._columns.pop(name, None)
        for name in change.names:
            if name in self._columns:
                column, _ = self._columns[name]
                column.put(change.row, self._table.values(change.row, name))
                if column.worn:
                    del self._columns[name]

"""Which items a filter selects, remembered until the catalogue changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

import numpy as np

from service.catalogue.column_cache import ColumnCache
from service.catalogue.item_columns import Column
from service.catalogue.item_filter import Comparing, Expression, comparisons, parse
from service.catalogue.item_table import Change, ItemTable
from service.catalogue.missing_names import (
    MOST_TOLD,
    missing_attribute,
    missing_values,
)
from service.catalogue.turns import Steps, Turns, at_once
from service.catalogue.view import Flags, Selection

SELECTIONS_BYTES, _FEWEST_SELECTIONS = 64_000_000, 8
_CHARACTER_BYTES, _ENTRY_BYTES = 4, 500
_CORRECTED = 50
_SHORT = 200
"""Characters of a filter that take no more than a millisecond to parse."""


class ItemSelector:
    """Args:
    turns: in which what takes long is done.
    """

    def __init__(self, table: ItemTable, turns: Turns) -> None:
        self._table, self._turns = table, turns
        self._columns = ColumnCache(table)
        self._selections: OrderedDict[str, tuple[int, Selection]] = OrderedDict()
        self._selected_bytes = 0
        self._changed: list[set[int]] = []  # of each filter that is being looked at
        table.watchers.append(self._change)

    async def matching(self, text: str) -> Selection:
        """The items of which an expression holds.

        Raises:
            FilterError: it is no expression.
            MisspeltError
            TooManyWait
        """
        known = self._selections.get(text)
        if known is not None and known[0] == self._table.version:
            self._selections.move_to_end(text)
            return known[1]
        return await self._turns.run(
            ("matching", text),
            lambda: self._matching(text),
            may_be_short=len(text) <= _SHORT,
        )

    def missing_fields(self, names: Iterable[str]) -> list[str]:
        """What is to be said of names that are no fields or attributes of any item, nor objects
        with some.

        Raises:
            MisspeltError
        """
        own = (name for name in names if not self._columns.has(name))
        return self._missing(name for name in own if not self._columns.has_within(name))

    async def of_categories(self, categories: Iterable[str]) -> Selection:
        """The items that have one of these categories.

        Raises:
            TooManyWait
        """
        wanted = frozenset(categories)
        return await self._turns.run(
            ("categories", self._table.version, wanted), lambda: self._of_categories(wanted)
        )

    def _of_categories(self, categories: frozenset[str]) -> Steps[Selection]:
        column = yield from self._columns.column("category")
        flags = yield from column.compare("in", tuple(categories), len(self._table))
        asked = Comparing("category", "in", tuple(categories))
        return Selection(flags, tuple(islice(missing_values(asked, column), MOST_TOLD)))

    def _matching(self, text: str) -> Steps[Selection]:
        expression, table = parse(text), self._table
        names = dict.fromkeys(one.name for one in comparisons(expression))
        told = self._missing(names)
        changed = set[int]()  # rows, meanwhile
        self._changed.append(changed)
        try:
            flags = yield from expression.flags(self._columns.column, len(table))
            # What has changed meanwhile was seen partly as it was, partly as it is.
            while changed:
                if len(flags) <= len(table):
                    flags = np.pad(flags, (0, len(table) + 1 - len(flags)))
                rows = [changed.pop() for _ in range(min(len(changed), _CORRECTED))]
                flags[rows] = self._alone(expression, rows)
                yield
        finally:
            self._changed = [other for other in self._changed if other is not changed]
        flags[0] = False
        told += yield from self._missing_values(expression, MOST_TOLD - len(told))
        found = Selection(flags, tuple(told))
        self._remember(text, found)
        return found

    def _missing(self, names: Iterable[str]) -> list[str]:
        missing = islice((name for name in names if not self._columns.has(name)), MOST_TOLD)
        return [missing_attribute(name, self._columns.names) for name in missing]

    def _missing_values(self, expression: Expression, most: int) -> Steps[list[str]]:
        """What is to be said of values that no item has, at most so many sentences."""
        told = dict[str, None]()
        for one in comparisons(expression):
            if len(told) >= most:
                break
            if not self._columns.has(one.name):
                continue
            column = yield from self._columns.column(one.name)
            for sentence in islice(missing_values(one, column), most - len(told)):
                told[sentence] = None
                yield
        return list(told)

    def _remember(self, text: str, found: Selection) -> None:
        """Keeps the answer to a filter, and those before it as far as there is room."""
        if text in self._selections:
            self._selected_bytes -= _nbytes(text, self._selections.pop(text)[1])
        self._selections[text] = self._table.version, found
        self._selected_bytes += _nbytes(text, found)
        while (
            self._selected_bytes > SELECTIONS_BYTES and len(self._selections) > _FEWEST_SELECTIONS
        ):
            old, (_, forgotten) = self._selections.popitem(last=False)
            self._selected_bytes -= _nbytes(old, forgotten)

    def _alone(self, expression: Expression, rows: list[int]) -> Flags:
        """Of which of these rows an expression holds now."""

        def column(name: str) -> Steps[Column]:
            yield from ()
            values = (self._table.values(row, name) for row in rows)
            return Column(enumerate(values, 1))

        return at_once(expression.flags(column, len(rows)))[1:]

    def _change(self, change: Change) -> None:
        for changed in self._changed:
            changed.add(change.row)


def _nbytes(text: str, found: Selection) -> int:
    characters = len(text) + sum(map(len, found.warnings))
    return _ENTRY_BYTES + _CHARACTER_BYTES * characters + found.allowed.nbytes

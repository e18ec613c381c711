"""How a table is written: what its columns are called there, its encoding, its times."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from training.tables import InputError

_LISTED = 20
_OTHER_NAMES = {
    "user_id": ("user", "userid", "uid", "customer", "customerid", "client", "clientid", "visitor",
                "visitorid", "member", "memberid", "account", "accountid", "buyerid", "shopperid",
                "reviewerid", "customernumber", "useruuid"),
    "item_id": ("item", "itemid", "sku", "product", "productid", "productsku", "article",
                "articleid", "asin", "parentasin", "movieid", "contentid", "variantid", "offerid",
                "trackid", "bookid", "gameid", "productcode", "itemsku", "isbn"),
    "timestamp": ("time", "ts", "date", "datetime", "eventtime", "eventdate", "eventtimestamp",
                  "createdat", "created", "orderdate", "ordertime", "purchasedat", "purchasedate",
                  "unixtime", "unixreviewtime", "timestampms", "timems", "occurredat", "at"),
    "kind": ("eventtype", "event", "action", "type", "eventname", "behavior", "behaviour",
             "behaviortype", "interactiontype"),
    "title": ("name", "productname", "itemname", "producttitle", "itemtitle", "productdisplayname"),
    "categories": ("category", "categoryname", "productcategory", "tags", "genre"),
}  # fmt: skip
"""What else these columns are called, without case and what is no letter or digit."""


class MissingColumns(InputError):
    """A table lacks a column.

    Attributes:
        what: the fault alone.
        near: what may have been meant; None: no names are near.
    """

    def __init__(self, what: str, near: TableFormat | None) -> None:
        offer = ""
        if near is not None:
            offer = f": did you mean {near.option} {shlex.quote(near.pairs)}?"
        super().__init__(what + offer)
        self.what, self.near = what, near


@dataclass(frozen=True, slots=True)
class TableFormat:
    """columns: what a column is called in the table, by what it is called here; others are called
        the same. option: what gives them on the command line.
    encoding: None: UTF-16 where the bytes say so, else UTF-8.
    time_format: of times, in the letters of strftime; None: as `model.times` says.
    any_time: whether times before 1990 and those to come are taken.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    time_format: str | None = None
    any_time: bool = True
    option: str = "--columns"

    @classmethod
    def parse(
        cls,
        columns: str | None,
        encoding: str | None = None,
        time_format: str | None = None,
        any_time: bool = True,
        option: str = "--columns",
    ) -> Self:
        """`columns`: pairs such as `user_id=customer_id,item_id=sku`. Raises InputError."""
        found: dict[str, str] = {}
        for pair in filter(None, map(str.strip, (columns or "").split(","))):
            here, equals, there = map(str.strip, pair.partition("="))
            if not (here and equals and there):
                raise InputError(f"{option}: {pair!r} is no NAME=COLUMN, such as item_id=sku")
            if here in found:
                raise InputError(f"{option}: {here} is given twice")
            found[here] = there
        return cls(found, encoding, time_format, any_time, option)

    def renamed(self, names: Sequence[str]) -> list[str | None]:
        """What each of the table's columns is called here; None: it is hidden by another one that
        has been given its name."""
        here = {there: name for name, there in self.columns.items()}
        return [here.get(name, None if name in self.columns else name) for name in names]

    def picked(
        self, path: Path, names: Sequence[str], required: Sequence[str],
        optional: Sequence[str] | None,
    ) -> dict[str, int]:  # fmt: skip
        """The places of the wanted columns, by what they are called here.

        Args:
            names: the table's columns.
            optional: those that are wanted where there are some; None: all.

        Raises:
            InputError: one is missing, or there twice.
        """
        names = [name.strip() for name in names]
        for here, there in self.columns.items():
            if there not in names and (optional is None or here in (*required, *optional)):
                raise InputError(
                    f"{path}: no column {there} ({self.option} {here}={there}); the columns are "
                    f"{_listed(names)}"
                )
        renamed = self.renamed(names)
        missing = [name for name in required if name not in renamed]
        if missing:
            raise MissingColumns(
                f"{path}: no column {', '.join(missing)}; the columns are {_listed(names)}",
                self.completed(names, required),
            )
        given = [name for name in renamed if name is not None]
        rest = given if optional is None else [name for name in optional if name in given]
        wanted = dict.fromkeys([*required, *rest])
        twice = [name for name in wanted if given.count(name) > 1]
        if twice:
            raise InputError(f"{path}: two columns are called {twice[0]}")
        return {name: renamed.index(name) for name in wanted}

    @property
    def pairs(self) -> str:
        """The columns as the option has them."""
        return ",".join(f"{here}={there}" for here, there in self.columns.items())

    def completed(self, names: Sequence[str], required: Sequence[str]) -> Self | None:
        """With the columns that may be meant by those that are missing; None: they can't be told.

        Args:
            names: the table's columns.
        """
        near = dict(self.columns)
        free = [name for name in names if name not in self.columns.values()]
        renamed = self.renamed(names)
        for here in required:
            if here in renamed:
                continue
            there = _nearest(here, free) or _own_id(free, required)
            if there is None:
                return None
            near[here] = there
            free.remove(there)
        optional = ("kind",) if "user_id" in required else ("title", "categories")
        for here in optional:
            if here in renamed or (here == "categories" and "genres" in renamed):
                continue
            there = _nearest(here, free)
            if there is not None:
                near[here] = there
                free.remove(there)
        return replace(self, columns=near)

    def names_users(self, names: Sequence[str]) -> bool:
        """Whether a table of these columns tells of users, as a log does and a table of items does
        not."""
        return "user_id" in self.renamed(names) or _nearest("user_id", names) is not None


PLAIN = TableFormat()
"""A table whose columns are called as they are here."""


def _nearest(here: str, names: Sequence[str]) -> str | None:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    for name in (re.sub("[^a-z]", "", here), *_OTHER_NAMES.get(here, ())):
        if name in plain:
            return plain[name]
    return None


def _own_id(names: Sequence[str], required: Sequence[str]) -> str | None:
    """In a table of items `id` is the item's; in a log it may be the row's."""
    return "id" if "id" in names and list(required) == ["item_id"] else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_LISTED])) or "none"

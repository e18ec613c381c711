"""Items in the order of their titles, to look through and to search.

They stand in blocks. The titles of a block stand in one string, so that a search of 100,000 of them
takes as long as finding a word in a text of some megabytes, and a change costs one block. Case,
accents and the order of words do not count.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate

from service.catalogue.turns import Steps

Key = tuple[str, str, int]
"""Title (or id, where there is none) as it is compared, id, row."""
Place = tuple[int, str, str]
"""The section of a search, and the title and id of an item found there."""

ITSELF, _PREFIX, _INSIDE = -1, 0, 1
"""Sections: the item with this very id, which others find; titles that begin so; the rest."""
_FIRST = ("", "", -1)  # in front of all keys
_BEHIND = 1 << 60  # a row behind all with the same title and id
_AT_ONCE = 200
MOST_IN_BLOCK = 2000


class Listing:
    """Titles of rows, kept in order."""

    def __init__(self) -> None:
        self._key_of: dict[int, Key] = {}
        self._blocks: list[_Block] = []

    def fill(self, entries: Iterable[tuple[int, str, str | None]]) -> Steps[None]:
        """Row, id and title of all, at the beginning; changes come after it.

        Keys are parted by some of them, and each part is sorted for itself: to sort a million at
        once would hold the loop for seconds.
        """
        keys: list[Key] = []
        for row, item_id, title in entries:
            keys.append(_key(row, item_id, title))
            if len(keys) % _AT_ONCE == 0:
                yield
        bounds = sorted(keys[:: max(1, MOST_IN_BLOCK // 2)])
        yield
        parts: list[list[Key]] = [[] for _ in range(len(bounds) + 1)]
        for count, key in enumerate(keys):
            self._key_of[key[2]] = key
            parts[bisect_right(bounds, key)].append(key)
            if count % _AT_ONCE == 0:
                yield
        for part in parts:
            part.sort()
            for start in range(0, len(part), MOST_IN_BLOCK):
                self._blocks.append(_Block(part[start : start + MOST_IN_BLOCK]))
            yield

    def put(self, row: int, item_id: str, title: str | None) -> None:
        """A row that is new, or has another title."""
        self.remove(row)
        key = self._key_of[row] = _key(row, item_id, title)
        if not self._blocks:
            self._blocks.append(_Block([key]))
            return
        place = min(self._place(key), len(self._blocks) - 1)
        block = self._blocks[place]
        insort(block.keys, key)
        block.text = None
        if len(block.keys) > MOST_IN_BLOCK:
            half = len(block.keys) // 2
            self._blocks[place : place + 1] = _Block(block.keys[:half]), _Block(block.keys[half:])

    def remove(self, row: int) -> None:
        """A row that is no more."""
        key = self._key_of.pop(row, None)
        if key is None:
            return
        place = self._place(key)
        block = self._blocks[place]
        del block.keys[bisect_left(block.keys, key)]
        block.text = None
        if not block.keys:
            del self._blocks[place]

    def find(self, text: str, after: Place | None) -> Iterator[list[tuple[int, Place]]]:
        """Rows whose titles hold all words of `text`, those that begin with it first, from `after`
        on, each with its place; block by block, each as it is when it is asked for."""
        text, behind = _folded(text), _FIRST
        section = _PREFIX
        if after is not None and after[0] != ITSELF:
            section, behind = after[0], (after[1], after[2], _BEHIND)
        if section == _PREFIX:
            for block, first in self._after(max(behind, (text, "", -1))):
                keys = block.keys[first:]
                own = [key for key in keys if key[0].startswith(text)]
                yield [(key[2], (_PREFIX, key[0], key[1])) for key in own]
                if len(own) < len(keys):
                    break
            behind = _FIRST
        words = sorted(set(text.split()), key=len, reverse=True)  # the rarest first, as it seems
        if not words:
            return
        for block, first in self._after(behind):
            yield [
                (key[2], (_INSIDE, key[0], key[1]))
                for key in block.holding(words[0], first)
                if all(word in key[0] for word in words[1:]) and not key[0].startswith(text)
            ]

    def _after(self, key: Key) -> Iterator[tuple[_Block, int]]:
        """The blocks with keys behind this one, and where those begin in each."""
        while (place := self._place(key, behind=True)) < len(self._blocks):
            block = self._blocks[place]
            last = block.keys[-1]  # of what is looked through now; changes may move it
            yield block, bisect_right(block.keys, key)
            key = last

    def _place(self, key: Key, behind: bool = False) -> int:
        """Of the block that this key is in, or one that lies behind it."""
        bisect = bisect_right if behind else bisect_left
        return bisect(self._blocks, key, key=_last)


class _Block:
    """`keys` in order; whoever changes them clears `text`, their titles in lines."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys
        self.text: str | None = None
        self._starts: list[int] = []

    def holding(self, word: str, first: int) -> Iterator[Key]:
        """The keys from the first one on whose titles hold a word."""
        if self.text is None:
            self.text = "\n".join(key[0] for key in self.keys)
            self._starts = list(accumulate((len(key[0]) + 1 for key in self.keys), initial=0))
        place = self._starts[first]
        while (place := self.text.find(word, place)) >= 0:
            entry = bisect_right(self._starts, place) - 1
            yield self.keys[entry]
            place = self._starts[entry + 1]


def _last(block: _Block) -> Key:
    return block.keys[-1]


def _folded(text: str) -> str:
    """As it is compared: in lower case, without accents, words apart by one space."""
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(part for part in parts if not unicodedata.combining(part))
    return " ".join(text.casefold().split())


def _key(row: int, item_id: str, title: str | None) -> Key:
    return _folded(item_id if title is None else title), item_id, row

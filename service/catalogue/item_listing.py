"""Items in the order of their titles, to look through and to search.

The titles stand in one string, so that a search of 100,000 of them takes as long as finding a word
in a text of some megabytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate

from service.http.cursor import CursorError

Key = tuple[str, str, int]
"""Title in lower case (or id, where there is none), id, row."""

_PREFIX, _INSIDE = 0, 1
_MANY = 2000


class Listing:
    """Titles of rows, kept in order."""

    def __init__(self, entries: Iterable[tuple[int, str, str | None]]) -> None:
        """`entries`: row, id, title."""
        self._key_of: dict[int, Key] = {row: _key(row, i, title) for row, i, title in entries}
        self._keys = sorted(self._key_of.values())
        self._text: str | None = None
        self._starts: list[int] = []

    def change(self, entries: list[tuple[int, str, str | None]], gone: Iterable[int]) -> None:
        """Rows that are new or have another title, and rows that are no more."""
        for row in (*gone, *(row for row, _, _ in entries)):
            old = self._key_of.pop(row, None)
            if old is not None and len(entries) <= _MANY:
                del self._keys[bisect_left(self._keys, old)]
        for row, item_id, title in entries:
            key = self._key_of[row] = _key(row, item_id, title)
            if len(entries) <= _MANY:
                insort(self._keys, key)
        if len(entries) > _MANY:
            self._keys = sorted(self._key_of.values())
        self._text = None

    def find(self, text: str, after: str | None) -> Iterator[tuple[int, str]]:
        """Rows whose titles hold `text`, those that begin with it first, from `after` on; with
        each the `after` of what follows.

        Raises:
            CursorError: at the call.
        """
        return self._found(_folded(text), *_read(after))

    def _found(self, text: str, section: int, last: tuple[str, str]) -> Iterator[tuple[int, str]]:
        # No row has a number below 0: the key is behind all with a lower title and id.
        behind = bisect_right(self._keys, (*last, 1 << 60)) if last != ("", "") else 0
        if section == _PREFIX:
            first = max(behind, bisect_left(self._keys, (text, "", -1)))
            for key in self._keys[first:]:
                if not key[0].startswith(text):
                    break
                yield key[2], _cursor(_PREFIX, key)
            behind = 0
        if not text:
            return
        whole, starts = self._joined()
        place = starts[behind]
        while (place := whole.find(text, place)) >= 0:
            entry = bisect_right(starts, place) - 1
            key = self._keys[entry]
            if not key[0].startswith(text):
                yield key[2], _cursor(_INSIDE, key)
            place = starts[entry + 1]

    def _joined(self) -> tuple[str, list[int]]:
        if self._text is None:
            titles = [key[0] for key in self._keys]
            self._text = "\n".join(titles)
            self._starts = list(accumulate((len(title) + 1 for title in titles), initial=0))
        return self._text, self._starts


def _folded(text: str) -> str:
    return text.casefold().replace("\n", " ")


def _key(row: int, item_id: str, title: str | None) -> Key:
    return _folded(item_id if title is None else title), item_id, row


def _cursor(section: int, key: Key) -> str:
    said = json.dumps([section, key[0], key[1]], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def _read(after: str | None) -> tuple[int, tuple[str, str]]:
    if after is None:
        return _PREFIX, ("", "")
    try:
        said = base64.urlsafe_b64decode(after.encode() + b"=" * (-len(after) % 4))
        section, title, item_id = json.loads(said)
        if section not in (_PREFIX, _INSIDE) or not isinstance(title, str):
            raise ValueError
        return section, (title, str(item_id))
    except (ValueError, TypeError, binascii.Error):
        raise CursorError("after: give the `next` of the page before, as it is") from None

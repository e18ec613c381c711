"""What to say of names and values that no item has, and which of those there are was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice

from service.catalogue.item_columns import Column
from service.catalogue.item_filter import Comparing

MOST_TOLD = 5
"""Sentences about one question."""
_SCANNED, _COMPARED, _LONGEST = 5000, 100, 64
"""Of the names there are, so many are looked at, and so many compared; none longer than this."""


class MisspeltError(ValueError):
    """An attribute that no item has, and that one they have differs from in case and punctuation
    only; says which."""


def missing_attribute(name: str, known: Iterable[str]) -> str:
    """A sentence.

    Raises:
        MisspeltError
    """
    said, near = f"no item has an attribute `{_clipped(name)}`", _nearest(name, known)
    if near is None:
        return said
    said = f"{said}: did you mean `{near}`?"
    if _plain(near) == _plain(name):
        raise MisspeltError(said)
    return said


def missing_values(asked: Comparing, column: Column) -> Iterator[str]:
    """Sentences of what a field or attribute is compared with, as far as no item has it."""
    name, value = _clipped(asked.name), asked.value
    compared = value if isinstance(value, tuple) else (value,)
    texts = [one for one in compared if isinstance(one, str)]
    if isinstance(value, float) and not column.has_numbers and not column.is_empty:
        yield f"no item has a number as {name}: text stands in quotes"
    elif texts and not column.has_strings and not column.is_empty:
        yield f"no item has text as {name}: numbers, true and false stand without quotes"
    elif asked.comparison in ("==", "in"):
        for text in texts:
            if not column.has(text):
                near = _nearest(text, column.strings)
                hint = "" if near is None else f": did you mean `{near}`?"
                yield f"no item has {name} `{_clipped(text)}`{hint}"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """The likeliest of those that begin with the same letter."""
    if len(word) > _LONGEST:
        return None
    first = word[:1].casefold()
    alike = (
        one
        for one in islice(known, _SCANNED)
        if len(one) <= _LONGEST and one[:1].casefold() == first
    )
    by_plain = {_plain(one): one for one in islice(alike, _COMPARED)}
    found = difflib.get_close_matches(_plain(word), by_plain, 1)
    return by_plain[found[0]] if found else None


def _plain(word: str) -> str:
    """Without case and punctuation, where that leaves something."""
    return "".join(filter(str.isalnum, word.casefold())) or word


def _clipped(word: str) -> str:
    return word if len(word) <= _LONGEST else f"{word[:_LONGEST]}…"

"""How many parts the lists and objects of a JSON body have, told before it is parsed.

Parsing a list and finding a fault in each of its elements takes a hundred times as long as looking
at its bytes, and as much more memory. What is not JSON is left to the parser to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from model.compiled import compiled
from service.http import faults

DEEPEST = 100
MOST_NESTED = 1000
"""Elements of a list, or members of an object, that no setting bounds."""
MOST_MEMBERS = 16
"""Of an object that is an element of one of the body's own lists."""
MOST_CONTAINERS, MOST_VALUES = 50_000, 500_000
"""Lists and objects of a body, and values in them."""

_KEY = re.compile(rb'"((?:[^"\\]|\\.){0,64})"[ \t\r\n]*:[ \t\r\n]*$')
_WINDOW = 128
MOST_FOUND = 64
_FINE, _DEEP, _MANY = 0, 1, 2


@dataclass(frozen=True)
class AtMost:
    """Said of a list in a body's model: the setting that bounds its length."""

    setting: str


class ShapeError(ValueError):
    """A body with more parts than are looked at.

    Attributes:
        field: which of its fields has them; `body` where that is none, or not known.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True)
class Shape:
    """What a body may have.

    fields: the most elements of lists that are a body's own fields, by their name; of all others
        MOST_NESTED.
    """

    fields: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: type[BaseModel], settings: object) -> Shape:
        """As the model's fields say by `AtMost`."""
        found = {
            name: int(getattr(settings, bound.setting))
            for name, about in model.model_fields.items()
            for bound in about.metadata
            if isinstance(bound, AtMost)
        }
        return cls(found)

    def check(self, body: bytes) -> None:
        """Raises ShapeError."""
        least = min(MOST_NESTED, *self.fields.values()) if self.fields else MOST_NESTED
        if len(body) <= 2 * least:  # of two bytes an element
            return
        state, found = _look_through(np.frombuffer(body, np.uint8), least)
        for start, count, kind in found.tolist():
            key = _KEY.search(body[max(0, start - _WINDOW) : start])
            name = "body" if key is None else key[1].decode(errors="replace")
            most, what = MOST_NESTED, "of them"
            if kind == _OWN:
                most, what = self.fields.get(name, MOST_NESTED), "in one request"
            elif kind == _ELEMENT:
                most, what = MOST_MEMBERS, "fields in an element"
            if count > most:
                counted = f", not {count}" if state == _FINE else ""
                raise ShapeError(name, f"at most {most} {what}{counted}")
        if state == _DEEP:
            raise ShapeError("body", faults.UNREADABLE.removeprefix("body: "))
        if state == _MANY:
            raise ShapeError(
                "body", f"at most {MOST_CONTAINERS} lists and objects, and {MOST_VALUES} values"
            )


_OTHER, _OWN, _ELEMENT = 0, 1, 2
_QUOTE, _BACKSLASH, _COMMA = ord('"'), ord("\\"), ord(",")
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = (ord(one) for one in "[]{}")
_BLANKS = (ord(" "), ord("\t"), ord("\r"), ord("\n"))


@compiled
def _look_through(body: Any, least: Any) -> Any:
    """Where, how many and which kind: of the body's own lists with more than `least` elements, and
    of whatever else has more than it may. What has no end, or is more than is looked at, counts as
    far as it goes."""
    starts = np.empty(DEEPEST + 1, np.int64)
    parts = np.zeros(DEEPEST + 1, np.int64)
    is_list = np.zeros(DEEPEST + 1, np.bool_)
    found = np.empty((MOST_FOUND, 3), np.int64)
    depth = number = containers = values = place = 0
    state, end = _FINE, len(body)
    while place < end or depth:
        char = body[place] if place < end else _CLOSE_LIST
        if char in (_CLOSE_LIST, _CLOSE_OBJECT):
            kind, most = _OTHER, MOST_NESTED
            if depth == 2 and is_list[2] and not is_list[1]:
                kind, most = _OWN, least
            elif depth == 3 and not is_list[3] and is_list[2] and not is_list[1]:
                kind, most = _ELEMENT, MOST_MEMBERS
            if depth and parts[depth] > most and number < MOST_FOUND:
                found[number, 0], found[number, 1] = starts[depth], parts[depth]
                found[number, 2] = kind
                number += 1
            depth = max(0, depth - 1)
        elif char == _COMMA:
            values += 1
            parts[depth] += 1
        elif parts[depth] == 0 and char not in _BLANKS:
            parts[depth] = 1
        if char in (_OPEN_LIST, _OPEN_OBJECT):
            containers += 1
            if depth == DEEPEST:
                state, end = _DEEP, place
            else:
                depth += 1
                starts[depth], parts[depth], is_list[depth] = place, 0, char == _OPEN_LIST
        elif char == _QUOTE:
            place += 1
            while place < end and body[place] != _QUOTE:
                place += 2 if body[place] == _BACKSLASH else 1
        place += 1
        if place < end and (
            containers > MOST_CONTAINERS or values > MOST_VALUES or number == MOST_FOUND
        ):
            state, end = _MANY, place
    return state, found[:number]


def warm() -> None:
    """Compiles what looks through bodies, before the first one comes."""
    _look_through(np.frombuffer(b"[]", np.uint8), MOST_NESTED)

"""The language of filters: which items a request may be given.

    price < 20 and brand in ("a", "b") and not has(sale)

Nothing of it is executed: an expression is a tree of comparisons, applied to columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedEOF, UnexpectedToken
from lark.exceptions import VisitError

from service.catalogue.item_columns import Column, Comparison, Value
from service.catalogue.turns import Steps
from service.catalogue.view import Flags

DEEPEST = 50
"""Expressions may be nested so deep."""
_REMEMBERED = 256

_GRAMMAR = r"""
?start: any
?any: all (_OR all)*
?all: one (_AND one)*
?one: _NOT one -> negation | "(" any ")" | atom
?atom: name COMPARISON value -> comparison
    | name _IN "(" value ("," value)* ")" -> among
    | name _NOT _IN "(" value ("," value)* ")" -> not_among
    | _HAS "(" name ")" -> presence
name: NAME | QUOTED_NAME
value: NUMBER -> number | STRING -> string | BOOLEAN -> boolean

COMPARISON: "==" | "=" | "!=" | "<=" | "<" | ">=" | ">"
_OR.2: /or\b/i
_AND.2: /and\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
_HAS.2: /has(?=\s*\()/i
BOOLEAN.2: /(true|false)\b/i
NAME: /[^\W\d]\w*(\.\w+)*/
QUOTED_NAME: /`[^`]+`/
NUMBER: /-?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?/i
STRING: /"(\\.|[^"\\])*"|'(\\.|[^'\\])*'/s
%ignore /\s+/
"""

_WORDS = {
    "_OR": "or", "_AND": "and", "_NOT": "not", "_IN": "in", "_HAS": "has(", "LPAR": "(",
    "RPAR": ")", "COMMA": ",", "COMPARISON": "a comparison", "NAME": "a name", "$END": "the end",
    "NUMBER": "a number", "STRING": "a string in quotes", "BOOLEAN": "true or false",
}  # fmt: skip


class FilterError(ValueError):
    """No expression of the language; says where, counted from 1, and what was expected."""


Columns = Callable[[str], Steps[Column]]
"""The column of a field or attribute."""


@dataclass(frozen=True)
class Comparing:
    """`value`: of `in` several, of `has` none."""

    name: str
    comparison: Comparison
    value: Value
    arrays = depth = 1

    def flags(self, columns: Columns, size: int) -> Steps[Flags]:
        column = yield from columns(self.name)
        yield
        return (yield from column.compare(self.comparison, self.value, size))


@dataclass(frozen=True)
class Not:
    part: Expression

    @property
    def arrays(self) -> int:
        return self.part.arrays

    @property
    def depth(self) -> int:
        return self.part.depth + 1

    def flags(self, columns: Columns, size: int) -> Steps[Flags]:
        found = yield from self.part.flags(columns, size)
        return np.logical_not(found, out=found)


@dataclass(frozen=True)
class Joined:
    """All parts hold, or any of them does."""

    all: bool
    parts: tuple[Expression, ...]

    @cached_property
    def depth(self) -> int:
        return 1 + max(part.depth for part in self.parts)

    @cached_property
    def arrays(self) -> int:
        needed = sorted((part.arrays for part in self.parts), reverse=True)
        return max(needed[0], *(own + 1 for own in needed[1:]), 1)

    def flags(self, columns: Columns, size: int) -> Steps[Flags]:
        join = np.logical_and if self.all else np.logical_or
        first, *others = sorted(self.parts, key=_order)
        found = yield from first.flags(columns, size)
        for part in others:
            own = yield from part.flags(columns, size)
            join(found, own, out=found)
        return found


Expression = Comparing | Not | Joined
"""`flags(columns, size)`: (size + 1,) of which rows it holds, the caller's own; that of row 0 says
nothing. `arrays`: so many of them there are at once meanwhile. `depth`: of its nesting."""


def comparisons(expression: Expression) -> Iterator[Comparing]:
    """All that it is made of, from left to right."""
    if isinstance(expression, Comparing):
        yield expression
        return
    for part in (expression.part,) if isinstance(expression, Not) else expression.parts:
        yield from comparisons(part)


def _order(expression: Expression) -> tuple[int, str]:
    """With what needs most first, all together needs least; and one column after the other."""
    name = expression.name if isinstance(expression, Comparing) else ""
    return -expression.arrays, name


class _Builder(Transformer[Token, Any]):
    """Bottom up while parsing, so that no nesting is too deep for Python's stack."""

    def name(self, parts: list[Token]) -> str:
        return str(parts[0]).strip("`")

    def number(self, parts: list[Token]) -> float:
        return float(parts[0])

    def string(self, parts: list[Token]) -> str:
        return re.sub(r"\\(.)", r"\1", str(parts[0])[1:-1], flags=re.DOTALL)

    def boolean(self, parts: list[Token]) -> bool:
        return parts[0].lower() == "true"

    def comparison(self, parts: list[Any]) -> Expression:
        name, token, value = parts
        if token in ("=", "=="):
            return Comparing(name, "==", value)
        if token == "!=":
            return Not(Comparing(name, "==", value))
        if isinstance(value, bool):
            raise FilterError(
                f"at {token.column}: {token} wants a number or a string, not true or false"
            )
        return Comparing(name, token.value, value)

    def among(self, parts: list[Any]) -> Expression:
        name, *values = parts
        alike = tuple(value for value in values if isinstance(value, str | bool))
        numbers = [Comparing(name, "==", value) for value in values if isinstance(value, float)]
        return _joined(False, [Comparing(name, "in", alike), *numbers] if alike else numbers)

    def not_among(self, parts: list[Any]) -> Expression:
        return Not(self.among(parts))

    def presence(self, parts: list[str]) -> Expression:
        return Comparing(parts[0], "has", None)

    def negation(self, parts: list[Expression]) -> Expression:
        (part,) = parts
        return part.part if isinstance(part, Not) else Not(part)

    def any(self, parts: list[Expression]) -> Expression:
        return _joined(False, parts)

    def all(self, parts: list[Expression]) -> Expression:
        return _joined(True, parts)


def _joined(every: bool, parts: Sequence[Expression]) -> Expression:
    if len(parts) == 1:
        return parts[0]
    found = Joined(every, tuple(parts))
    _ = found.arrays, found.depth  # while its parts' are known: later the nesting may be too deep
    return found


_PARSER = Lark(_GRAMMAR, parser="lalr", transformer=_Builder(), propagate_positions=False)


@lru_cache(_REMEMBERED)
def parse(text: str) -> Expression:
    """The expression that a text is.

    Raises:
        FilterError: it is none; the message begins with the place.
    """
    try:
        expression: Expression = _PARSER.parse(text)  # type: ignore[assignment]
    except UnexpectedCharacters as error:
        place = error.pos_in_stream or 0
        seen = text[place]
        if seen in "\"'`":
            raise FilterError(f"at {place + 1}: {seen} is never closed") from None
        raise FilterError(_wrong(place, repr(seen), error.allowed)) from None
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        place = len(text) if at_end else error.token.start_pos or 0
        seen = "the end" if at_end else repr(str(error.token))
        raise FilterError(_wrong(place, seen, error.accepts or error.expected)) from None
    except UnexpectedEOF as error:
        raise FilterError(_wrong(len(text), "the end", set(error.expected))) from None
    except VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from None
        raise
    if expression.depth > DEEPEST:
        raise FilterError(f"at 1: nested more than {DEEPEST} deep")
    return expression


def _wrong(place: int, seen: str, expected: set[str] | None) -> str:
    words = sorted({_WORDS[name] for name in expected or () if name in _WORDS})
    return f"at {place + 1}: {', '.join(words) or 'something else'} was expected, not {seen}"

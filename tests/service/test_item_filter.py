"""Filters: an expression holds of what a plain predicate says, wrong ones are told where."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalogue import item_columns
from service.catalogue.item import values_of
from service.catalogue.item_columns import Column
from service.catalogue.item_filter import FilterError, parse
from service.catalogue.turns import Steps, at_once

Item = dict[str, Any]
Predicate = Callable[[Item], bool]

NAMES = ["price", "order", "in_stock", "ü", "size.w", "my name"]
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, -1.5, 2.25])
STRINGS = st.text(st.sampled_from("ab'\"\\ \n"), max_size=2)
SCALARS = NUMBERS | STRINGS | st.booleans()
VALUES = SCALARS | st.none() | st.lists(SCALARS | st.none(), max_size=3)


def attributes(values: Item) -> Item:
    """As callers nest them."""
    found = {name: value for name, value in values.items() if name != "size.w"}
    return found | ({"size": {"w": values["size.w"]}} if "size.w" in values else {})


def flat(item: Item, name: str) -> list[Any]:
    value = item.get(name)
    values = value if isinstance(value, list) else [value]
    return [one for one in values if one is not None]


def alike(one: Any, other: Any) -> bool:
    """Of one kind, so that they can be compared."""
    return any(
        isinstance(one, kind) and isinstance(other, kind) for kind in (bool, str)
    ) or not any(isinstance(value, bool | str) for value in (one, other))


COMPARED = {
    "==": operator.eq, "=": operator.eq, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def written(value: Any, quote: str) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace(quote, "\\" + quote)
        return f"{quote}{escaped}{quote}"
    return repr(value)


@st.composite
def atoms(draw: st.DrawFn) -> tuple[str, Predicate]:
    name = draw(st.sampled_from(NAMES))
    shown = f"`{name}`" if " " in name or draw(st.booleans()) else name
    quote = draw(st.sampled_from("\"'"))
    kind = draw(st.sampled_from(["compare", "differ", "in", "not in", "has"]))
    if kind == "has":
        return f"has({shown})", lambda item: bool(flat(item, name))
    if kind in ("in", "not in"):
        values = draw(st.lists(SCALARS, min_size=1, max_size=3))
        text = f"{shown} {kind} ({', '.join(written(value, quote) for value in values)})"
        wanted = kind == "in"
        return (
            text,
            lambda item: (
                wanted
                == any(
                    alike(own, value) and own == value
                    for own in flat(item, name)
                    for value in values
                )
            ),
        )
    if kind == "differ":
        value = draw(SCALARS)
        return (
            f"{shown} != {written(value, quote)}",
            lambda item: not any(alike(own, value) and own == value for own in flat(item, name)),
        )
    sign = draw(st.sampled_from(sorted(COMPARED)))
    value = draw(SCALARS if sign in ("=", "==") else NUMBERS | STRINGS)
    compared = COMPARED[sign]
    return f"{shown}{sign}{written(value, quote)}", lambda item: any(
        alike(own, value) and compared(own, value) for own in flat(item, name)
    )


def joined(parts: st.SearchStrategy[tuple[str, Predicate]]) -> st.SearchStrategy[Any]:
    several = st.lists(parts, min_size=1, max_size=3)

    def of(word: str, fold: Callable[[Any], bool]) -> st.SearchStrategy[tuple[str, Predicate]]:
        return several.map(
            lambda own: (
                f" {word} ".join(f"({text})" for text, _ in own),
                lambda item: fold(predicate(item) for _, predicate in own),
            )
        )

    negated = parts.map(lambda own: (f"NOT ({own[0]})", lambda item: not own[1](item)))
    return of("and", all) | of("or", any) | negated


EXPRESSIONS = st.recursive(atoms(), joined, max_leaves=8)


ITEMS = st.dictionaries(st.sampled_from(NAMES), VALUES)


@given(EXPRESSIONS, st.lists(ITEMS, max_size=6), st.data(), st.sampled_from([1, 256]))
def test_an_expression_is_its_predicate(
    expression: tuple[str, Predicate], items: list[Item], data: st.DataObject, few: int
) -> None:
    """However many strings are compared between two pauses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_columns, "_AT_ONCE", few)
        is_its_predicate(expression, items, data)


def is_its_predicate(
    expression: tuple[str, Predicate], items: list[Item], data: st.DataObject
) -> None:
    text, predicate = expression
    columns: dict[str, Column] = {}

    def column(name: str) -> Steps[Column]:
        yield from ()
        if name not in columns:
            rows = (
                (row, values_of(attributes(item)).get(name, ()))
                for row, item in enumerate(items, 1)
            )
            columns[name] = Column(rows)
        return columns[name]

    parsed = parse(text)
    for _ in range(2):
        flags = at_once(parsed.flags(column, len(items)))
        assert flags[1:].tolist() == [predicate(item) for item in items]
        if not items:
            return
        # One changes, and columns that are there are changed with it.
        row = data.draw(st.integers(1, len(items)))
        items[row - 1] = data.draw(ITEMS)
        for name, own in columns.items():
            own.put(row, values_of(attributes(items[row - 1])).get(name, ()))


def test_words_bind_as_they_do_everywhere() -> None:
    assert parse("a=1 or b=1 and not c=1") == parse("a=1 or (b=1 and (not c=1))")
    assert parse("not a=1 and b=1") == parse("(not a=1) and b=1")
    assert parse("order=1 OR android<2 AND inside>3") == parse(
        "`order`=1 or (`android`<2 and `inside`>3)"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at 1: "),
        ("price <", "at 8: a number, a string in quotes, true or false was expected, not the end"),
        ("price < true", "at 7: < wants a number or a string"),
        ("price 20", "at 7: "),
        ("a = 1 b = 2", "at 7: and, or, the end was expected, not 'b'"),
        ("a = 1 and", "at 10: "),
        ("(a = 1", "at 7: ) was expected, not the end"),
        ("a = 1)", "at 6: "),
        ("a in ()", "at 7: "),
        ("a in (1,)", "at 9: "),
        ('a = "x', 'at 5: " is never closed'),
        ("a = `x`", "at 5: "),
        ("a == b", "at 6: "),
        ("__import__('os')", "at 11: "),
        ("a = 1; b", "at 6: "),
        ("a ~ 1", "at 3: "),
        ("(a=1 or (b=1 and " * 30 + "a=1" + "))" * 30, "nested more than 50 deep"),
    ],
)
def test_a_wrong_one_is_told_where(text: str, said: str) -> None:
    with pytest.raises(FilterError) as error:
        parse(text)
    assert said in str(error.value)


PIECES = [*"ab1 ()=<>!\"'`,.\\-", "and", "or ", "not ", " in", "has(", "true"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_an_expression_or_told_where(text: str) -> None:
    try:
        parse(text)
    except FilterError as error:
        if not str(error).startswith("at "):
            raise AssertionError(str(error)) from None


def test_brackets_cost_no_stack() -> None:
    assert parse("(" * 900 + "a=1" + ")" * 900) == parse("a=1")
    assert parse("not (" * 400 + "a=1" + ")" * 400) == parse("a=1")

"""A filter's names are told where no item has them, whatever the items were before."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.items import Items
from service.catalogue.item import read_item
from service.catalogue.item_selector import ItemSelector
from service.catalogue.item_table import ItemTable
from service.catalogue.missing_names import MOST_TOLD, MisspeltError, missing_attribute
from service.catalogue.turns import Turns

IDS = ["i0", "i1", "new"]
NAMES = ["size", "size.w", "colour", "colours", "Colour", "x", "ü"]
SCALARS = st.integers(0, 2) | st.sampled_from(["red", "Red", "blue"]) | st.none() | st.booleans()
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.just("w"), SCALARS)
RECORDS = st.dictionaries(st.sampled_from(NAMES).filter(lambda name: "." not in name), VALUES)
CHANGES = st.lists(st.tuples(st.sampled_from(IDS), RECORDS | st.none()), max_size=5)


def told(selector: ItemSelector, text: str) -> list[str]:
    try:
        return list(asyncio.run(selector.matching(text)).warnings)
    except MisspeltError as error:
        return [str(error)]


@given(CHANGES, st.sampled_from(NAMES))
def test_a_name_is_told_while_no_item_has_it(
    changes: list[tuple[str, dict[str, object] | None]], name: str
) -> None:
    table = ItemTable(Items(IDS[:2], np.ones(2, np.int64)))
    selector = ItemSelector(table, Turns())
    for item, attributes in changes:
        record = None if attributes is None else json.dumps({"attributes": attributes}).encode()
        table.set(item, None if record is None else read_item(record))
        table.version += 1
        values = [table.values(row, name) for row in range(1, len(table) + 1)]
        sentences = told(selector, f"has(`{name}`)")
        assert bool(sentences) == (not any(values))
        assert all(f"`{name}`" in sentence for sentence in sentences)
        # What answers are to hold may also be an object.
        chosen = [table.attributes(row, [name]) for row in range(1, len(table) + 1)]
        try:
            missing = selector.missing_fields([name])
        except MisspeltError:
            missing = ["misspelt"]
        if any(value not in ([], {}) and any(values) for own in chosen for value in own.values()):
            assert not missing
        if not any(chosen):
            assert missing


@given(CHANGES, st.sampled_from(["red", "Red", "blue", "green"]))
def test_a_text_that_an_item_has_is_never_told(
    changes: list[tuple[str, dict[str, object] | None]], text: str
) -> None:
    table = ItemTable(Items(IDS[:2], np.ones(2, np.int64)))
    selector = ItemSelector(table, Turns())
    for item, attributes in changes:
        record = None if attributes is None else json.dumps({"attributes": attributes}).encode()
        table.set(item, None if record is None else read_item(record))
        table.version += 1
    values = [table.values(row, "colour") for row in range(1, len(table) + 1)]
    sentences = told(selector, f'`colour` in ("{text}")')
    assert bool(sentences) == (not any(text in own for own in values))


@given(st.text(), st.lists(st.text()))
def test_any_name_is_told_in_a_short_sentence(name: str, known: list[str]) -> None:
    try:
        said = missing_attribute(name, known)
    except MisspeltError as error:
        said = str(error)
    assert said.startswith("no item has an attribute `")
    assert len(said) < 250


MANY = [
    " or ".join(f"has(x{n})" for n in range(50)),
    " or ".join(f'colour = "{n}"' for n in range(50)),
    f"colour in ({', '.join(f'{n!r}' for n in map(str, range(50)))})",
]


@pytest.mark.parametrize("text", MANY)
def test_few_sentences_are_told(text: str) -> None:
    table = ItemTable(Items(IDS[:2], np.ones(2, np.int64)))
    selector = ItemSelector(table, Turns())
    table.set("i0", read_item(json.dumps({"attributes": {"colour": "red"}}).encode()))
    assert len(told(selector, text)) == MOST_TOLD

"""What is told of a body by its bytes is what its values say."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from service.http import json_shape
from service.http.json_shape import AtMost, Shape, ShapeError
from tests.depth import examples

SMALL = {"MOST_NESTED": 6, "MOST_MEMBERS": 2, "MOST_CONTAINERS": 40, "MOST_VALUES": 60}
SHAPE = Shape({"events": 4, "exclude": 8})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that made-up bodies reach; the function itself, since compiled code keeps its own."""
    for name, value in SMALL.items():
        monkeypatch.setattr(json_shape, name, value)
    monkeypatch.setattr(json_shape, "_look_through", json_shape._look_through.py_func)  # type: ignore[attr-defined]


def faults(value: Any) -> set[tuple[str, int]]:
    """The fields with more than they may have, and how many they have, of a parsed body."""
    found: set[tuple[str, int]] = set()

    def look(value: Any, name: str, path: str) -> None:
        if not isinstance(value, list | dict):
            return
        most = SMALL["MOST_NESTED"]
        if path == "{[" and isinstance(value, list):
            most = SHAPE.fields.get(name, most)
        elif path == "{[{":
            most = SMALL["MOST_MEMBERS"]
        if len(value) > most:
            found.add((name, len(value)))
        if isinstance(value, list):
            for part in value:
                look(part, "body", path + ("{" if isinstance(part, dict) else "["))
        else:
            for key, part in value.items():
                look(part, key, path + ("{" if isinstance(part, dict) else "["))

    look(value, "body", "{" if isinstance(value, dict) else "[")
    return found


def refusal(body: bytes) -> ShapeError | None:
    try:
        SHAPE.check(body)
    except ShapeError as error:
        return error
    return None


def sizes(value: Any) -> tuple[int, int]:
    """Lists and objects, and commas."""
    if not isinstance(value, list | dict):
        return 0, 0
    parts = list(value.values()) if isinstance(value, dict) else value
    inner = [sizes(part) for part in parts]
    return 1 + sum(i[0] for i in inner), max(0, len(parts) - 1) + sum(i[1] for i in inner)


scalars = st.integers() | st.booleans() | st.none() | st.text(' "\\,[]{}:a', max_size=6)
names = st.sampled_from(["events", "exclude", "other", 'a"b', "x,y"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(names, inner, max_size=4),
    max_leaves=30,
)


@pytest.mark.slow
@settings(max_examples=examples(300))
@given(values, st.sampled_from([None, 1]), st.booleans())
@example({"events": [1, 2, 3, 4]}, None, True)
@example({"events": [1, 2, 3, 4, 5]}, None, True)
@example({"exclude": [1] * 8, "other": [1] * 6}, None, True)
@example({"events": [{"a": 1, "b": 2, "c": [1, 2, 3, 4, 5, 6, 7]}]}, None, True)
def test_a_whole_body(value: Any, indent: int | None, ascii: bool) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii).encode()
    wrong, (containers, commas) = faults(value), sizes(value)
    many = containers > SMALL["MOST_CONTAINERS"] or commas > SMALL["MOST_VALUES"]
    error = refusal(body)
    if error is None:
        assert not (wrong or many) or len(body) <= 8
        return
    assert wrong or many
    if wrong and not many:
        number = int(str(error).rpartition("not ")[2])
        assert (error.field.encode().decode("unicode_escape"), number) in wrong


@settings(max_examples=examples(300))
@given(st.lists(st.sampled_from(list('[]{}",:\\1 a')), max_size=60).map("".join))
def test_any_text_comes_to_an_end(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, list | dict) and not faults(value):
        SHAPE.check(text.encode())
    else:
        with contextlib.suppress(ShapeError):
            SHAPE.check(text.encode())


def test_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_shape, "MOST_CONTAINERS", 1000)
    Shape().check(b"[" * json_shape.DEEPEST + b"]" * json_shape.DEEPEST)
    with pytest.raises(ShapeError, match="nested too deeply"):
        Shape().check(b"[" * (json_shape.DEEPEST + 1))


def test_a_model_names_the_settings_of_its_lists() -> None:
    class Body(BaseModel):
        items: Annotated[list[str], AtMost("max_items")]
        names: Annotated[list[str] | None, AtMost(3)]
        other: list[str]

    assert Shape.of(Body, SimpleNamespace(max_items=7)).fields == {"items": 7, "names": 3}

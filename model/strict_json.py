"""JSON that others may have written, and how a name of theirs stands in a message."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from typing import Any, NoReturn


def parse(content: bytes | str, *, constants: bool = False) -> Any:
    """The value of a JSON text in UTF-8. No name stands twice in an object, and no number is beyond
    a float's range.

    Args:
        constants: NaN and Infinity, which the standard has not, are taken.

    Raises:
        ValueError: it is none. One line.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=float if constants else _constant,
            parse_float=_number,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(name: object) -> str:
    """A name in a message: as it is, or cut and in quotes where it is not short and on one line."""
    if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable():
        return name
    return reprlib.repr(name)


def is_number(value: object) -> bool:
    """Whether it is a JSON number (`true` is none) that a float can hold."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is more than a number can be here")
    return number


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")

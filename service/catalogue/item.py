"""An item of the catalogue: what its record says over what the model's artefact says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Scalar = str | float | bool

FIELDS = ("id", "title", "category")
"""Names that a filter takes for an item's own fields, so no attribute may have one of them."""
DEEPEST = 8
"""Attributes may be objects within objects to this depth."""
_LARGEST = 2**63


class ItemError(ValueError):
    """A record that can't be kept; names the field."""


@dataclass(frozen=True, slots=True)
class Item:
    """A record of the catalogue, as workers hold it.

    `title` and `categories` None: what the artefact says. `attributes`: JSON, as answers give it.
    `values`: their scalars, by name, as filters compare them; those of an object within an object
    have the names of both, `size.width`. `available_from` and `available_until`: epoch
    milliseconds, the latter exclusive.
    """

    title: str | None = None
    categories: tuple[str, ...] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    hidden: bool = False
    available_from: int | None = None
    available_until: int | None = None
    similar_to: tuple[str, ...] = ()

    def chosen(self, names: Iterable[str]) -> dict[str, Any]:
        """Its attributes of these names; `size.width` is one of an object `size`. What it lacks, or
        has as null, is left out."""
        found = ((name, _within(self.attributes, name)) for name in names)
        return {name: value for name, value in found if value is not None}


def _within(attributes: Mapping[str, Any], name: str) -> Any:
    if name in attributes:
        return attributes[name]
    outer, _, inner = name.partition(".")
    found = attributes.get(outer)
    return _within(found, inner) if isinstance(found, Mapping) else None


def read_item(stored: bytes) -> Item:
    """The item of a stored record.

    Raises:
        ItemError: this is no record.
    """
    try:
        record = json.loads(stored)
        categories, attributes = record.get("categories"), dict(record.get("attributes", {}))
        return Item(
            title=record.get("title"),
            categories=None if categories is None else tuple(categories),
            attributes=attributes,
            values=values_of(attributes),
            hidden=bool(record.get("hidden", False)),
            available_from=record.get("available_from"),
            available_until=record.get("available_until"),
            similar_to=tuple(record.get("similar_to", ())),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ItemError(f"no record of an item: {error}") from None


def values_of(attributes: Mapping[str, Any]) -> dict[str, tuple[Scalar, ...]]:
    """The scalars of JSON attributes, numbers as floats; null is none, a list is several.

    Raises:
        ItemError: a name or value that no filter could tell from others.
    """
    found: dict[str, list[Scalar]] = {}
    for name, value in _flat("", attributes, DEEPEST):
        found.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in found.items()}


def _flat(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, str | bool):
        yield prefix, value
    elif isinstance(value, int | float):
        if not abs(value) <= _LARGEST:  # nor is what is no number
            raise ItemError(f"attributes: {prefix}: {value} is no number that can be compared")
        yield prefix, float(value)
    elif value is not None:
        if depth == 0:
            raise ItemError(f"attributes: {prefix}: nested more than {DEEPEST} deep")
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if "`" in name or not name:
                    raise ItemError(f"attributes: {name!r}: a name is not empty and has no `")
                if not prefix and name in FIELDS:
                    raise ItemError(f"attributes: {name!r} is a field of every item: rename it")
                yield from _flat(f"{prefix}.{name}" if prefix else name, inner, depth - 1)
        else:
            for inner in value:
                yield from _flat(prefix, inner, depth - 1)

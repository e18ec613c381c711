"""Attributes that a caller wants with each item of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, Field

from service.catalogue.catalogue import Catalogue
from service.catalogue.missing_names import MisspeltError
from service.http.problems import ProblemError
from service.http.schemas import Id

MOST_FIELDS = 20

_Listed = Field(
    max_length=MOST_FIELDS,
    description="attributes to give with each item, by the names that filters have for them, "
    "`category` among them",
)


def _split(given: object) -> object:
    if not isinstance(given, list):
        return given
    return [name.strip() for part in given for name in str(part).split(",")]


Fields = Annotated[list[Id] | None, _Listed]
"""In a body."""
QueryFields = Annotated[list[Id] | None, BeforeValidator(_split), _Listed]
"""In a URL: separated by commas, or repeated."""


class _Item(Protocol):
    item_id: str
    attributes: dict[str, Any] | None


def missing_fields(catalogue: Catalogue, names: Sequence[str] | None) -> list[str] | None:
    """Warnings of those that no item has; None: there are none.

    Raises:
        ProblemError: one can only be misspelt.
    """
    if names is None:
        return None
    try:
        return catalogue.missing_fields(names) or None
    except MisspeltError as error:
        raise ProblemError(422, f"fields: {error}", field="fields") from None


def put_fields(items: Iterable[_Item], names: Sequence[str], catalogue: Catalogue) -> None:
    """Puts what is asked for of each item into it."""
    for item in items:
        row = catalogue.row(item.item_id)
        item.attributes = {} if row is None else catalogue.attributes(row, names)

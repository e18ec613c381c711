"""What the API takes and gives of items."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, JsonValue, model_validator

from service.catalogue.item import values_of
from service.http.fields import QueryFields
from service.http.json_shape import AtMost
from service.http.schemas import (
    ATTRIBUTES,
    EDITION,
    MODEL,
    MOST_LISTED,
    WARNINGS,
    Body,
    Id,
    example,
)
from service.http.times import Time

_FAR = 16


class ItemRecord(Body):
    """What is said of an item, in place of all that was said before."""

    title: str | None = Field(None, description="none: what the model's artefact says")
    categories: list[Id] | None = Field(
        None, max_length=MOST_LISTED, description="none: what the model's artefact says"
    )
    attributes: dict[str, JsonValue] = Field(
        default_factory=dict, description="anything that filters may ask for"
    )
    hidden: bool = Field(False, description="no answer holds it")
    available_from: Time | None = Field(None, description="no answer holds it before")
    available_until: Time | None = Field(None, description="no answer holds it from then on")
    similar_to: list[Id] = Field(
        default_factory=list,
        max_length=100,
        description="items that the model knows: what an item that it does not know yet is like",
    )

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if (
            self.available_from is not None
            and self.available_until is not None
            and self.available_until <= self.available_from
        ):
            raise ValueError("available_until: must be after available_from")
        return self

    def stored(self, most_bytes: int) -> bytes:
        """The record as the store keeps it.

        Raises:
            ValueError: it can't be kept, or has more bytes.
        """
        if _is_far_over(self, most_bytes):
            raise ValueError(f"the record is far too large, at most {most_bytes} bytes fit")
        values_of(self.attributes)
        said = self.model_dump(exclude_defaults=True, exclude={"item_id"})
        stored = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        if len(stored) > most_bytes:
            raise ValueError(f"the record has {len(stored)} bytes, at most {most_bytes} fit")
        return stored


def _is_far_over(record: ItemRecord, most_bytes: int) -> bool:
    """Whether it has so many times as many values and characters that it need not be written to
    see that it is too large."""
    lists = [record.categories or [], record.similar_to]
    left: list[Any] = [record.title, record.attributes, *lists]
    room = _FAR * most_bytes
    while left and room >= 0:
        one = left.pop()
        room -= 1
        if isinstance(one, str):
            room -= len(one)
        elif isinstance(one, list | dict):
            room -= len(one)
            if room >= 0:
                left += one.values() if isinstance(one, dict) else one
                room -= sum(map(len, one)) if isinstance(one, dict) else 0
    return room < 0


class NewItem(ItemRecord):
    item_id: Id


class ItemBatch(Body):
    """Items, each with all that is to be said of it."""

    model_config = example(items=[{"item_id": "lamp-1", "title": "Lamp", "categories": ["Light"]}])

    items: Annotated[list[NewItem], AtMost("max_batch_items")] = Field(min_length=1)


class ItemQuery(BaseModel):
    item_id: list[Id] | None = Field(
        None, max_length=1000, description="these items, and no others: repeat it"
    )
    q: str = Field(
        "", max_length=256, description="words of a title, in any order and case, or an id"
    )
    category: list[str] | None = Field(
        None, max_length=MOST_LISTED, description="one of several: repeat it"
    )
    limit: int = Field(20, ge=1, le=1000)
    after: str | None = Field(None, description="`next` of the page before")
    unavailable: bool = Field(False, description="also those that no answer may hold now")
    fields: QueryFields = None


def _is_none(value: object) -> bool:
    return value is None


class _Item(BaseModel):
    item_id: str
    title: str | None = None
    categories: list[str] = Field(default_factory=list)
    available: bool = Field(description="whether answers may hold it now")
    known: bool = Field(description="whether the model was trained on it")


class ListedItem(_Item):
    attributes: dict[str, Any] | None = Field(description=ATTRIBUTES, exclude_if=_is_none)


class CatalogueItem(_Item):
    """An item: its record over what the model's artefact says."""

    recorded: bool = Field(description="false: only the model's artefact says something of it")
    attributes: dict[str, Any]
    hidden: bool
    available_from: str | None
    available_until: str | None
    similar_to: list[str]


class ItemPage(BaseModel):
    """Items by title; with `q` the item of this id first, then those whose titles begin with it."""

    items: list[ListedItem]
    next: str | None = Field(description="`after` of the next page; none: this was the last")
    warnings: list[str] | None = Field(description=WARNINGS, exclude_if=_is_none)


class ItemsWritten(BaseModel):
    written: int = Field(description="how many items have a new record")


class ItemDeleted(BaseModel):
    item_id: str
    deleted: bool = Field(description="false: it had no record")


class SimilarItem(BaseModel):
    item_id: str
    score: float = Field(description="cosine of the two items' vectors, at most 1")
    title: str | None = None
    attributes: Annotated[dict[str, Any] | None, Field(description=ATTRIBUTES)] = None


class SimilarItems(BaseModel):
    """The items most like one, the most like first."""

    item_id: str
    items: list[SimilarItem]
    model: str = Field(description=MODEL)
    edition: str = Field(description=EDITION)
    warnings: Annotated[list[str] | None, Field(description=WARNINGS)] = None

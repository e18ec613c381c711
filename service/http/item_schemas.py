"""What the API takes and gives of items."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from service.catalogue.item import values_of
from service.http.json_shape import AtMost
from service.http.schemas import Id, Time


class ItemRecord(BaseModel):
    """What is said of an item, in place of all that was said before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str | None = Field(None, description="none: what the model's artefact says")
    categories: list[Id] | None = Field(None, description="none: what the model's artefact says")
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
    def _can_be_kept(self) -> Self:
        values_of(self.attributes)
        self.stored()
        if (
            self.available_from is not None
            and self.available_until is not None
            and self.available_until <= self.available_from
        ):
            raise ValueError("available_until: must be after available_from")
        return self

    def stored(self) -> bytes:
        """The record as the store keeps it."""
        said = self.model_dump(exclude_defaults=True, exclude={"item_id"})
        return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


class NewItem(ItemRecord):
    item_id: Id


class ItemBatch(BaseModel):
    """Items, each with all that is to be said of it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    items: Annotated[list[NewItem], AtMost("max_batch_items")] = Field(min_length=1)


class ListedItem(BaseModel):
    item_id: str
    title: str | None = None
    categories: list[str] = Field(default_factory=list)
    available: bool = Field(description="whether answers may hold it now")
    known: bool = Field(description="whether the model was trained on it")


class CatalogueItem(ListedItem):
    """An item: its record over what the model's artefact says."""

    recorded: bool = Field(description="false: only the model's artefact says something of it")
    attributes: dict[str, Any]
    hidden: bool
    available_from: str | None
    available_until: str | None
    similar_to: list[str]


class ItemPage(BaseModel):
    """Items by title; with `q` those first whose titles begin with it."""

    items: list[ListedItem]
    next: str | None = Field(description="`after` of the next page; none: this was the last")


class ItemsWritten(BaseModel):
    written: int = Field(description="how many items have a new record")


class ItemDeleted(BaseModel):
    item_id: str
    deleted: bool = Field(description="false: it had no record")

"""The catalogue: PUT, GET and DELETE /items/{id}, POST /items/batch, GET /items."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BeforeValidator

from model.times import iso
from service.catalogue.cursor import CursorError, read_place, write_place
from service.catalogue.turns import Steps
from service.http.dependencies import Services, ServicesDep, waiting_bounded
from service.http.item_schemas import (
    CatalogueItem,
    ItemBatch,
    ItemDeleted,
    ItemPage,
    ItemRecord,
    ItemsWritten,
    ListedItem,
)
from service.http.problems import ProblemError, declared
from service.http.routes.users import decoded
from service.http.schemas import MOST_LISTED, Id

router = APIRouter(prefix="/items", tags=["items"])

ItemId = Annotated[Id, BeforeValidator(decoded), Path(description="percent-encoded")]


@router.get("", responses=declared(422, 503))
async def list_items(
    services: ServicesDep,
    item_id: Annotated[
        list[Id] | None,
        Query(max_length=1000, description="these items, and no others: repeat it"),
    ] = None,
    q: Annotated[str, Query(max_length=256, description="part of a title, in any case")] = "",
    category: Annotated[
        list[str] | None, Query(max_length=MOST_LISTED, description="one of several: repeat it")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
    unavailable: Annotated[
        bool, Query(description="also those that no answer may hold now")
    ] = False,
) -> ItemPage:
    """Items by title, or whose titles hold `q`: first those that begin with it.

    With `item_id`, those of the items that there are, in the order given; the rest does not count.
    """
    if item_id is not None:
        rows = map(services.catalogue.row, dict.fromkeys(item_id))
        listed = [ListedItem(**_listed(services, row)) for row in rows if row is not None]
        return ItemPage(items=listed, next=None)
    try:
        place = None if after is None else read_place(services.seal, after)
    except CursorError as error:
        raise ProblemError(422, str(error), field="after") from None
    with waiting_bounded():
        found, last = await services.catalogue.listed(
            q,
            limit=limit,
            after=place,
            categories=frozenset(category or ()),
            unavailable=unavailable,
        )
    return ItemPage(
        items=[ListedItem(**_listed(services, row)) for row in found],
        next=None if last is None else write_place(services.seal, last),
    )


@router.post("/batch", responses=declared(422, 503))
async def put_items(body: ItemBatch, services: ServicesDep) -> ItemsWritten:
    """Sets the records of many items; of one that comes twice, the last counts."""

    def stored() -> Steps[dict[str, bytes | None]]:
        found: dict[str, bytes | None] = {}
        for place, item in enumerate(body.items):
            found[item.item_id] = _stored(services, item, f"items.{place}")
            yield
        return found

    with waiting_bounded():
        records = await services.catalogue.turns.run(object(), stored)
    await services.write_items(records)
    return ItemsWritten(written=len(records))


@router.put("/{item_id}", responses=declared(422, 503))
async def put_item(item_id: ItemId, body: ItemRecord, services: ServicesDep) -> CatalogueItem:
    """Sets an item's record in place of the one before. All workers heed it within a moment."""
    stored = _stored(services, body, "body")
    await services.write_items({item_id: stored})
    return _described(services, item_id, stored)


@router.get("/{item_id}", responses=declared(404, 422, 503))
async def get_item(item_id: ItemId, services: ServicesDep) -> CatalogueItem:
    """What is known of an item."""
    stored = await services.catalogue.read(item_id)
    row = services.catalogue.row(item_id)
    if stored is None and (row is None or row > services.catalogue.trained):
        raise ProblemError(404, f"item_id: nothing is known of {item_id!r}", field="item_id")
    return _described(services, item_id, stored)


@router.delete("/{item_id}", responses=declared(422, 503))
async def delete_item(item_id: ItemId, services: ServicesDep) -> ItemDeleted:
    """Removes an item's record: what the model's artefact says of it, if anything, holds again."""
    before = await services.write_items({item_id: None})
    return ItemDeleted(item_id=item_id, deleted=before[item_id])


def _stored(services: Services, record: ItemRecord, field: str) -> bytes:
    try:
        return record.stored(services.settings.max_item_bytes)
    except ValueError as error:
        raise ProblemError(422, f"{field}: {error}", field=field) from None


def _listed(services: Services, row: int) -> dict[str, Any]:
    catalogue = services.catalogue
    return {
        "item_id": catalogue.ids[row - 1],
        "title": catalogue.titles[row - 1],
        "categories": list(catalogue.categories(row)),
        "available": catalogue.is_open(row),
        "known": row <= catalogue.trained,
    }


def _described(services: Services, item_id: str, stored: bytes | None) -> CatalogueItem:
    """By the record as the store has it: this process may not have heard of it yet."""
    record: dict[str, Any] = json.loads(stored) if stored is not None else {}
    catalogue, row = services.catalogue, services.catalogue.row(item_id)
    title, categories = catalogue.of_artefact(row) if row is not None else (None, ())
    opens, closes = record.get("available_from"), record.get("available_until")
    hidden, now = record.get("hidden", False), time.time() * 1000
    return CatalogueItem(
        item_id=item_id,
        title=record.get("title", title),
        categories=record.get("categories", categories),
        available=not hidden
        and (opens is None or now >= opens)
        and (closes is None or now < closes),
        known=row is not None and row <= catalogue.trained,
        recorded=stored is not None,
        attributes=record.get("attributes", {}),
        hidden=hidden,
        available_from=None if opens is None else iso(opens),
        available_until=None if closes is None else iso(closes),
        similar_to=record.get("similar_to", []),
    )

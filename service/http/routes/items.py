"""/items: the catalogue, and which of its items are alike."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BeforeValidator

from model.times import iso
from service.catalogue.cursor import CursorError, read_place, write_place
from service.catalogue.turns import Steps
from service.http.dependencies import Services, ServicesDep, check_k
from service.http.fields import QueryFields, missing_fields, put_fields
from service.http.item_schemas import (
    CatalogueItem,
    ItemBatch,
    ItemDeleted,
    ItemPage,
    ItemQuery,
    ItemRecord,
    ItemsWritten,
    ListedItem,
    SimilarItem,
    SimilarItems,
)
from service.http.problems import ProblemError, declared
from service.http.routes.users import decoded
from service.http.schemas import Id

router = APIRouter(prefix="/items", tags=["items"])

ItemId = Annotated[Id, BeforeValidator(decoded), Path(description="percent-encoded")]


@router.get("", summary="Find items", responses=declared(422, 503))
async def list_items(query: Annotated[ItemQuery, Query()], services: ServicesDep) -> ItemPage:
    """Items by title, or whose titles hold all words of `q`: first those that begin with it.

    With `item_id`, those of the items that there are, in the order given; the rest does not count.
    """
    warnings = missing_fields(services.catalogue, query.fields)
    if query.item_id is not None:
        rows = map(services.catalogue.row, dict.fromkeys(query.item_id))
        listed = [_listed(services, row, query.fields) for row in rows if row is not None]
        return ItemPage(items=listed, next=None, warnings=warnings)
    try:
        place = None if query.after is None else read_place(services.seal, query.after)
    except CursorError as error:
        raise ProblemError(422, str(error), field="after") from None
    found, last = await services.catalogue.listed(
        query.q,
        limit=query.limit,
        after=place,
        categories=frozenset(query.category or ()),
        unavailable=query.unavailable,
    )
    if query.category and not found:
        selected = await services.catalogue.of_categories(query.category)
        warnings = [*(warnings or ()), *selected.warnings] or None
    return ItemPage(
        items=[_listed(services, row, query.fields) for row in found],
        next=None if last is None else write_place(services.seal, last),
        warnings=warnings,
    )


@router.post("/batch", summary="Describe many items", responses=declared(422, 503))
async def put_items(body: ItemBatch, services: ServicesDep) -> ItemsWritten:
    """Sets the records of many items; of one that comes twice, the last counts."""

    def stored() -> Steps[dict[str, bytes | None]]:
        found: dict[str, bytes | None] = {}
        for place, item in enumerate(body.items):
            found[item.item_id] = _stored(services, item, f"items.{place}")
            yield
        return found

    records = await services.catalogue.turns.run(object(), stored)
    await services.write_items(records)
    return ItemsWritten(written=len(records))


@router.put("/{item_id}", summary="Describe an item, or hide it", responses=declared(422, 503))
async def put_item(item_id: ItemId, body: ItemRecord, services: ServicesDep) -> CatalogueItem:
    """Sets an item's record in place of the one before. All workers heed it within a moment."""
    stored = _stored(services, body, "body")
    await services.write_items({item_id: stored})
    return _described(services, item_id, stored)


@router.get("/{item_id}", summary="Look at an item", responses=declared(404, 422, 503))
async def get_item(item_id: ItemId, services: ServicesDep) -> CatalogueItem:
    """What is known of an item."""
    stored = await services.catalogue.records.read(item_id)
    row = services.catalogue.row(item_id)
    if stored is None and (row is None or row > services.catalogue.trained):
        raise ProblemError(404, f"item_id: nothing is known of {item_id!r}", field="item_id")
    return _described(services, item_id, stored)


@router.delete(
    "/{item_id}", summary="Delete what was said of an item", responses=declared(422, 503)
)
async def delete_item(item_id: ItemId, services: ServicesDep) -> ItemDeleted:
    """Removes an item's record: what the model's artefact says of it, if anything, holds again."""
    before = await services.write_items({item_id: None})
    return ItemDeleted(item_id=item_id, deleted=before[item_id])


@router.get(
    "/{item_id}/similar",
    summary="List items like this one",
    responses=declared(404, 422, 503),
    response_model_exclude_none=True,
)
async def get_similar(
    item_id: ItemId,
    services: ServicesDep,
    k: Annotated[int, Query(ge=1, description="how many items")] = 10,
    fields: Annotated[QueryFields, Query()] = None,
) -> SimilarItems:
    """The items that people interact with as they do with this one."""
    check_k(services, k)
    catalogue = services.catalogue
    rows = catalogue.rows([item_id]).tolist()
    if not rows or not (catalogue.exists(rows[0]) or catalogue.is_noted(rows[0])):
        raise ProblemError(404, f"item_id: there is no item {item_id!r}", field="item_id")
    warnings = missing_fields(catalogue, fields)
    found = await services.engine.similar(rows[0], item_id, k)
    items = [
        SimilarItem(
            item_id=catalogue.ids[place - 1], score=score, title=catalogue.titles[place - 1]
        )
        for place, score in zip(found.items.tolist(), found.scores.tolist(), strict=True)
    ]
    if fields is not None:
        put_fields(items, fields, catalogue)
    return SimilarItems(
        item_id=item_id,
        items=items,
        model=services.engine.identity,
        edition=services.engine.edition,
        warnings=warnings,
    )


def _stored(services: Services, record: ItemRecord, field: str) -> bytes:
    try:
        return record.stored(services.settings.max_item_bytes)
    except ValueError as error:
        raise ProblemError(422, f"{field}: {error}", field=field) from None


def _listed(services: Services, row: int, fields: Sequence[str] | None) -> ListedItem:
    catalogue = services.catalogue
    return ListedItem(
        item_id=catalogue.ids[row - 1],
        title=catalogue.titles[row - 1],
        categories=list(catalogue.categories(row)),
        available=catalogue.is_open(row),
        known=row <= catalogue.trained,
        attributes=None if fields is None else catalogue.attributes(row, fields),
    )


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

"""GET /popular."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from model.times import iso
from service.catalogue.ask import Ask
from service.http.dependencies import ServicesDep, check_k
from service.http.fields import QueryFields, missing_fields, put_fields
from service.http.problems import declared
from service.http.schemas import ATTRIBUTES, WARNINGS

router = APIRouter(tags=["recommendations"])


class PopularQuery(BaseModel):
    window: Literal["all", "recent"] = Field("recent", description="of all time, or of late")
    k: int = Field(10, ge=1, description="how many items")
    fields: QueryFields = None


class PopularItem(BaseModel):
    item_id: str
    count: float = Field(description="interactions; recent ones count less the older they are")
    title: str | None = None
    attributes: Annotated[dict[str, Any] | None, Field(description=ATTRIBUTES)] = None


class PopularItems(BaseModel):
    """The items interacted with most, most first."""

    items: list[PopularItem]
    source: Literal["all", "recent", "training"] = Field(
        description="what was counted; training: the service itself has counted too little yet"
    )
    as_of: str = Field(description="when the counts were read; they may be some seconds old")
    warnings: Annotated[list[str] | None, Field(description=WARNINGS)] = None


@router.get(
    "/popular",
    summary="List what is popular",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def get_popular(
    query: Annotated[PopularQuery, Query()], services: ServicesDep
) -> PopularItems:
    """What everybody interacts with, counted live over all processes of the service."""
    window, k = query.window, query.k
    check_k(services, k)
    popularity, catalogue = services.popularity, services.catalogue
    warnings = missing_fields(catalogue, query.fields)
    counts = popularity.counts
    source: Literal["all", "recent", "training"] = window
    found = counts.all if window == "all" else counts.recent
    if not (counts.all if window == "all" else popularity.enough):
        source = "training"
        best = services.engine.runner.retrieval.popular_in_training(Ask(k))
        found = [
            (catalogue.ids[index - 1], score)
            for index, score in zip(best.items.tolist(), best.scores.tolist(), strict=True)
        ]
    rows = [(item, count, catalogue.row(item)) for item, count in found]
    open_ones = [one for one in rows if one[2] is None or catalogue.is_open(one[2])]
    items = [
        PopularItem(
            item_id=item,
            count=count,
            title=None if row is None else catalogue.titles[row - 1],
        )
        for item, count, row in open_ones[:k]
    ]
    if query.fields is not None:
        put_fields(items, query.fields, catalogue)
    return PopularItems(
        items=items,
        source=source,
        as_of=iso(counts.at_ms),
        warnings=warnings,
    )

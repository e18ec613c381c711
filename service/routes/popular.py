"""GET /popular."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from service.dependencies import ServicesDep
from service.engine import NOTHING_MASKED
from service.problems import ProblemError, declared
from service.times import iso

router = APIRouter(tags=["recommendations"])


class PopularItem(BaseModel):
    item_id: str
    count: float = Field(description="interactions; recent ones count less the older they are")
    title: str | None = None


class PopularItems(BaseModel):
    """The items interacted with most, most first."""

    items: list[PopularItem]
    source: Literal["all", "recent", "training"] = Field(
        description="what was counted; training: the service itself has counted too little yet"
    )
    as_of: str = Field(description="when the counts were read; they may be some seconds old")


@router.get("/popular", responses=declared(422, 503), response_model_exclude_none=True)
async def get_popular(
    services: ServicesDep,
    window: Annotated[
        Literal["all", "recent"], Query(description="of all time, or of late")
    ] = "recent",
    k: Annotated[int, Query(ge=1, description="how many items")] = 10,
) -> PopularItems:
    """What everybody interacts with, counted live over all processes of the service."""
    if k > services.settings.max_k:
        raise ProblemError(422, f"k: at most {services.settings.max_k}, not {k}", field="k")
    popularity, items = services.popularity, services.artefact.items
    vocabulary = services.engine.computer.vocabulary
    counts, shelf = popularity.counts, services.engine.computer.retrieval.shelf
    source: Literal["all", "recent", "training"] = window
    found = counts.all if window == "all" else counts.recent
    if not (counts.all if window == "all" else popularity.enough):
        source = "training"
        best = services.engine.computer.retrieval.popular(NOTHING_MASKED, k, in_training=True)
        found = [
            (items.ids[index - 1], score)
            for index, score in zip(best.items.tolist(), best.scores.tolist(), strict=True)
        ]
    if not shelf.plain:
        found = [pair for pair in found if shelf.open[vocabulary.get(pair[0], 0)]]
    return PopularItems(
        items=[
            PopularItem(
                item_id=item,
                count=count,
                title=items.titles[vocabulary[item] - 1]
                if items.titles and item in vocabulary
                else None,
            )
            for item, count in found[:k]
        ],
        source=source,
        as_of=iso(counts.at_ms),
    )

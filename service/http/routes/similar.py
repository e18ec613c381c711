"""GET /items/{id}/similar."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, BeforeValidator, Field

from service.http.dependencies import ServicesDep, check_k
from service.http.problems import ProblemError, declared
from service.http.routes.users import decoded
from service.http.schemas import Id

router = APIRouter(prefix="/items", tags=["items"])


class SimilarItem(BaseModel):
    item_id: str
    score: float = Field(description="cosine of the two items' vectors, at most 1")
    title: str | None = None


class SimilarItems(BaseModel):
    """The items most like one, the most like first."""

    item_id: str
    items: list[SimilarItem]
    model: str = Field(description="identity of the model")


@router.get(
    "/{item_id}/similar", responses=declared(404, 422, 503), response_model_exclude_none=True
)
async def get_similar(
    item_id: Annotated[Id, BeforeValidator(decoded), Path(description="percent-encoded")],
    services: ServicesDep,
    k: Annotated[int, Query(ge=1, description="how many items")] = 10,
) -> SimilarItems:
    """The items that people interact with as they do with this one."""
    check_k(services, k)
    catalogue = services.catalogue
    rows = catalogue.rows([item_id]).tolist()
    if not rows or not catalogue.exists(rows[0]):
        raise ProblemError(404, f"item_id: there is no item {item_id!r}", field="item_id")
    found = await services.engine.similar(rows[0], k)
    return SimilarItems(
        item_id=item_id,
        items=[
            SimilarItem(
                item_id=catalogue.ids[place - 1], score=score, title=catalogue.titles[place - 1]
            )
            for place, score in zip(found.items.tolist(), found.scores.tolist(), strict=True)
        ],
        model=services.engine.identity,
    )

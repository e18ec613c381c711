"""POST /rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.http.dependencies import ServicesDep
from service.http.fields import Fields, missing_fields, put_fields
from service.http.json_shape import AtMost
from service.http.problems import declared
from service.http.schemas import (
    AT,
    ATTRIBUTES,
    EDITION,
    MODEL,
    STALE,
    WARNINGS,
    Body,
    Id,
    example,
)
from service.http.times import AssumedTime, RequestTime

router = APIRouter(tags=["recommendations"])


class Candidates(Body):
    """Items to be put in the order in which they fit a user."""

    model_config = example(user_id="ann", item_ids=["50", "181", "100"])

    user_id: Id
    item_ids: Annotated[list[Id], AtMost("max_candidates")] = Field(
        min_length=1, description="one that comes twice counts once"
    )
    at: RequestTime | None = Field(None, description="the moment ranked for; none: now")
    exclude_seen: bool = Field(
        False, description="leave out everything the user ever interacted with"
    )
    allow_stale: bool = Field(
        False, description="a state in memory will do: faster, may miss the newest events"
    )
    fields: Fields = None


@dataclass(slots=True)  # as schemas.RecommendedItem
class RankedItem:
    item_id: str
    known: Annotated[
        bool,
        Field(
            description="false: neither the model nor the catalogue has it; these come last, in "
            "the order given"
        ),
    ]
    score: Annotated[float | None, Field(description="none where the item is not known")] = None
    title: str | None = None
    attributes: Annotated[dict[str, Any] | None, Field(description=ATTRIBUTES)] = None


class RankedItems(BaseModel):
    """The candidates, best first."""

    user_id: str
    items: list[RankedItem]
    version: int = Field(description="the number of the user's interactions this answer knows")
    at: AssumedTime = Field(description=AT)
    source: Literal["model", "live", "recent", "popular"] = Field(
        description="what ordered them: the model; where that knows none of the user's "
        "interactions, their popularity, recently or in training (popular)"
    )
    stale: bool = Field(description=STALE)
    history_truncated: bool = Field(
        description="older interactions were gone when the state was built (history_limit)"
    )
    model: str = Field(description=MODEL)
    edition: str = Field(description=EDITION)
    warnings: Annotated[list[str] | None, Field(description=WARNINGS)] = None


@router.post(
    "/rank",
    summary="Order given items for a user",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def rank(body: Candidates, services: ServicesDep) -> RankedItems:
    """Orders given items for a user, by everything that was logged before the call."""
    services = services.of(body.user_id)
    catalogue = services.catalogue
    warnings = missing_fields(catalogue, body.fields)
    rows = {item: catalogue.row(item) for item in body.item_ids}
    shown = [row for row in rows.values() if row is not None and catalogue.is_open(row)]
    found = await services.engine.rank(
        body.user_id,
        np.array(shown, np.int32),
        at_ms=body.at,
        exclude_seen=body.exclude_seen,
        allow_stale=body.allow_stale,
    )
    ranked = [
        RankedItem(
            item_id=catalogue.ids[row - 1],
            known=True,
            score=score,
            title=catalogue.titles[row - 1],
        )
        for row, score in zip(
            found.ranking.items.tolist(), found.ranking.scores.tolist(), strict=True
        )
    ]
    ranked += [
        RankedItem(item_id=item, known=False)
        for item, row in rows.items()
        if row is None or not catalogue.exists(row)
    ]
    if body.fields is not None:
        put_fields(ranked, body.fields, catalogue)
    return RankedItems(
        user_id=body.user_id,
        items=ranked,
        version=found.version,
        at=found.at_ms,
        source=found.source,
        stale=found.stale,
        history_truncated=found.truncated,
        model=services.engine.identity,
        edition=services.engine.edition,
        warnings=warnings,
    )

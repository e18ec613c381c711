"""GET /recommend."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query

from service.answers import because, recommended
from service.dependencies import ServicesDep
from service.engine import NOTHING_MASKED
from service.problems import ProblemError, declared
from service.schemas import Id, Recommendations, Time

router = APIRouter(tags=["recommendations"])


@router.get("/recommend", responses=declared(422, 503), response_model_exclude_none=True)
async def recommend(
    services: ServicesDep,
    user_id: Annotated[Id, Query()],
    k: Annotated[int, Query(ge=1, description="how many items")] = 10,
    exclude: Annotated[
        list[str] | None, Query(description="item ids not to return; repeat it for several")
    ] = None,
    exclude_seen: Annotated[
        bool, Query(description="leave out everything the user ever interacted with")
    ] = True,
    at: Annotated[Time | None, Query(description="the moment recommended for; none: now")] = None,
    allow_stale: Annotated[
        bool, Query(description="a state in memory will do: faster, may miss the newest events")
    ] = False,
    explain: Annotated[bool, Query(description="say which interactions moved the scores")] = False,
    reasons: Annotated[int, Query(ge=1, description="most of them for an item")] = 3,
) -> Recommendations:
    """The best items for a user, by everything that was logged before the call."""
    if k > services.settings.max_k:
        raise ProblemError(422, f"k: at most {services.settings.max_k}, not {k}", field="k")
    if explain:
        if k > services.settings.explain_k:
            most = services.settings.explain_k
            raise ProblemError(422, f"k: at most {most} with explain, not {k}", field="k")
        at = round(time.time() * 1000) if at is None else at
    masked = services.catalogue.rows(exclude) if exclude else NOTHING_MASKED
    found = await services.engine.recommend(
        user_id, k, at_ms=at, exclude_seen=exclude_seen, masked=masked, allow_stale=allow_stale
    )
    answer = Recommendations(
        user_id=user_id,
        items=recommended(services, found),
        version=found.version,
        source=found.source,
        stale=found.stale,
        history_truncated=found.truncated,
        model=services.engine.identity,
    )
    if at is not None and explain and found.source == "model":
        whys = await services.explainer.explain(
            user_id, found, at, reasons, exclude_seen=exclude_seen
        )
        for item, why in zip(answer.items, whys, strict=True):
            item.because = because(why)
    return answer

"""GET /recommend."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.answers import recommended
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
) -> Recommendations:
    """The best items for a user, by everything that was logged before the call."""
    if k > services.settings.max_k:
        raise ProblemError(422, f"k: at most {services.settings.max_k}, not {k}", field="k")
    masked = services.catalogue.rows(exclude) if exclude else NOTHING_MASKED
    found = await services.engine.recommend(
        user_id, k, at_ms=at, exclude_seen=exclude_seen, masked=masked, allow_stale=allow_stale
    )
    return Recommendations(
        user_id=user_id,
        items=recommended(services, found),
        version=found.version,
        source=found.source,
        stale=found.stale,
        history_truncated=found.truncated,
        model=services.engine.identity,
    )

"""POST /recommend/session."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.http.answers import put_reasons, recommended
from service.http.dependencies import Services, ServicesDep
from service.http.json_shape import AtMost
from service.http.problems import ProblemError, declared
from service.http.recommendation_options import (
    RecommendationOptions,
    check_size,
    next_cursor,
    resolved,
)
from service.http.schemas import (
    AT,
    EDITION,
    MODEL,
    WARNINGS,
    Body,
    Id,
    Kind,
    RecommendedItem,
    example,
)
from service.http.times import AssumedTime, Time
from service.store.events import Event, new_uid

router = APIRouter(prefix="/recommend", tags=["recommendations"])


class SessionEvent(Body):
    """One interaction of a session."""

    item_id: Id
    timestamp: Time | None = Field(None, description="when; none: now, by the process's clock")
    kind: Kind | None = None


class SessionRequest(RecommendationOptions):
    """Interactions of somebody of whom nothing is stored, oldest first."""

    model_config = example(events=[{"item_id": "50"}, {"item_id": "181"}], k=5)

    events: Annotated[list[SessionEvent], AtMost("max_session_events")]


class SessionRecommendations(BaseModel):
    """The best items, best first."""

    items: list[RecommendedItem]
    at: AssumedTime = Field(description=AT)
    source: Literal["model", "live", "recent", "popular"] = Field(
        description="the model; where that knows none of the session's items, what is popular, "
        "recently or in training (popular)"
    )
    unknown_items: int = Field(description="interactions with items that the model does not know")
    model: str = Field(description=MODEL)
    edition: str = Field(description=EDITION)
    next: str | None = Field(
        None, description="`after` of the next page, where the list is paged and goes on"
    )
    warnings: Annotated[list[str] | None, Field(description=WARNINGS)] = None


@router.post(
    "/session",
    summary="Recommend items to somebody unknown, by what they did now",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def recommend_session(body: SessionRequest, services: ServicesDep) -> SessionRecommendations:
    """The best items after these interactions; nothing is stored, and the store is not asked.

    It is the answer that a new user would get to whom they had been posted.
    """
    check_size(services, body)
    vocabulary, events = services.engine.vocabulary, _events(body, services)
    options = await resolved(services, body)
    found = await services.engine.recommend_session(
        events,
        body.k,
        at_ms=body.at,
        exclude_seen=body.exclude_seen,
        masked=options.masked,
        choice=options.choice,
        live=body.live,
    )
    answer = SessionRecommendations(
        items=recommended(services, found, body.fields),
        at=found.at_ms,
        source=found.source,
        unknown_items=sum(event.item_id not in vocabulary for event in body.events),
        model=services.engine.identity,
        edition=services.engine.edition,
        next=next_cursor(services, options.shown, found.ranking.items, body.k),
        warnings=options.warnings,
    )
    if body.explain:
        await put_reasons(services, answer.items, found, events, body)
    return answer


def _events(body: SessionRequest, services: Services) -> list[Event]:
    """The session as the log would keep it: times that fall are judged by the same policy."""
    settings, now = services.settings, round(time.time() * 1000)
    latest = now + round(settings.future_tolerance_s * 1000)
    times: list[int] = []
    kept: list[SessionEvent] = []
    for number, event in enumerate(body.events):
        at, place = now if event.timestamp is None else event.timestamp, len(kept)
        field = f"events.{number}.timestamp"
        if at > latest:
            raise ProblemError(422, f"{field}: too far ahead of the service's clock", field=field)
        if times and at < times[-1]:
            if event.timestamp is None or settings.late_policy == "clamp":
                at = times[-1]
            else:
                place = bisect_right(times, at)
                if settings.late_policy == "reject" or len(kept) - place > settings.replay_limit:
                    raise ProblemError(422, f"{field}: older than the ones before it", field=field)
        times.insert(place, at)
        kept.insert(place, event)
    return [
        Event(number + 1, new_uid(), event.item_id, event.timestamp, at, None, event.kind)
        for number, (at, event) in enumerate(zip(times, kept, strict=True))
    ]

"""GET and POST /recommend."""

from __future__ import annotations

import time
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query
from pydantic import Field

from service.catalogue.retrieval import NO_ITEMS
from service.http import wishes
from service.http.answers import because, recommended
from service.http.dependencies import Services, ServicesDep
from service.http.problems import ProblemError, declared
from service.http.schemas import MOST_LISTED, Id, Recommendations
from service.http.times import Time
from service.http.wishes import Diversity, Share, Wanted, Wishes

router = APIRouter(tags=["recommendations"])

_PLAIN = Wanted(NO_ITEMS, None, None)


class Asking(NamedTuple):
    """Who asks, and how."""

    user_id: str
    k: int
    exclude_seen: bool
    at: int | None
    allow_stale: bool
    explain: bool
    reasons: int


_K = "how many items"
_EXCLUDE_SEEN = "leave out everything the user ever interacted with"
_AT = "the moment recommended for; none: now"
_EXPLAIN = "say which interactions moved the scores"
_REASONS = "most of them for an item"
_ALLOW_STALE = "a state in memory will do: faster, may miss the newest events"


@router.get("/recommend", responses=declared(422, 503), response_model_exclude_none=True)
async def recommend(
    services: ServicesDep,
    user_id: Annotated[Id, Query()],
    k: Annotated[int, Query(ge=1, description=_K)] = 10,
    exclude: Annotated[
        list[str] | None,
        Query(max_length=MOST_LISTED, description="item ids not to return; repeat it for several"),
    ] = None,
    exclude_seen: Annotated[bool, Query(description=_EXCLUDE_SEEN)] = True,
    at: Annotated[Time | None, Query(description=_AT)] = None,
    allow_stale: Annotated[bool, Query(description=_ALLOW_STALE)] = False,
    explain: Annotated[bool, Query(description=_EXPLAIN)] = False,
    reasons: Annotated[int, Query(ge=1, description=_REASONS)] = 3,
    category: Annotated[
        list[Id] | None,
        Query(max_length=MOST_LISTED, description=f"{wishes.CATEGORY}; repeat it for several"),
    ] = None,
    include: Annotated[
        list[str] | None,
        Query(max_length=MOST_LISTED, description=f"{wishes.INCLUDE}; repeat it for several"),
    ] = None,
    filter: Annotated[str | None, Query(description=wishes.FILTER)] = None,
    promote: Annotated[str | None, Query(description=wishes.PROMOTE)] = None,
    promote_share: Annotated[Share, Query(description=wishes.PROMOTE_SHARE)] = 0.2,
    diversity: Annotated[Diversity, Query(description=wishes.DIVERSITY)] = 0,
    paged: Annotated[bool, Query(description=wishes.PAGED)] = False,
    after: Annotated[str | None, Query(description=wishes.AFTER)] = None,
) -> Recommendations:
    """The best items for a user, by everything that was logged before the call."""
    asking = Asking(user_id, k, exclude_seen, at, allow_stale, explain, reasons)
    _check(services, asking)
    wanted, services = _PLAIN, services.of(user_id)
    some = exclude or category is not None or include is not None or filter is not None
    if some or promote is not None or diversity or paged or after is not None:
        asked = Wishes.model_construct(
            exclude=exclude or [], category=category, include=include, filter=filter,
            promote=promote, promote_share=promote_share, diversity=diversity, paged=paged,
            after=after,
        )  # fmt: skip
        wanted = await wishes.wanted(services, asked)
    return await _answer(services, asking, wanted)


class Request(Wishes):
    """The parameters of GET /recommend, for more of them than a URL holds."""

    user_id: Id
    k: int = Field(10, ge=1, description=_K)
    exclude_seen: bool = Field(True, description=_EXCLUDE_SEEN)
    at: Time | None = Field(None, description=_AT)
    allow_stale: bool = Field(False, description=_ALLOW_STALE)
    explain: bool = Field(False, description=_EXPLAIN)
    reasons: int = Field(3, ge=1, description=_REASONS)


@router.post("/recommend", responses=declared(422, 503), response_model_exclude_none=True)
async def post_recommend(body: Request, services: ServicesDep) -> Recommendations:
    """GET /recommend with its parameters in the body."""
    services = services.of(body.user_id)
    asking = Asking(
        body.user_id, body.k, body.exclude_seen, body.at, body.allow_stale, body.explain,
        body.reasons,
    )  # fmt: skip
    _check(services, asking)
    return await _answer(services, asking, await wishes.wanted(services, body))


def _check(services: Services, asking: Asking) -> None:
    """What costs nothing to see comes before what the wishes name is looked up."""
    k, most, most_explained = asking.k, services.settings.max_k, services.settings.explain_k
    if k > most:
        raise ProblemError(422, f"k: at most {most}, not {k}", field="k")
    if asking.explain and k > most_explained:
        raise ProblemError(422, f"k: at most {most_explained} with explain, not {k}", field="k")


async def _answer(services: Services, asking: Asking, wanted: Wanted) -> Recommendations:
    k, at = asking.k, asking.at
    if asking.explain and at is None:
        at = round(time.time() * 1000)
    found = await services.engine.recommend(
        asking.user_id,
        k,
        at_ms=at,
        exclude_seen=asking.exclude_seen,
        masked=wanted.masked,
        allow_stale=asking.allow_stale,
        choice=wanted.choice,
    )
    answer = Recommendations(
        user_id=asking.user_id,
        items=recommended(services, found),
        version=found.version,
        source=found.source,
        stale=found.stale,
        history_truncated=found.truncated,
        model=services.engine.identity,
        next=wishes.following(services, wanted.shown, found.ranking.items, k),
    )
    outcomes = services.engine.outcomes
    if outcomes is not None and found.source == "model":
        outcomes.shown(asking.user_id, answer.model, (item.item_id for item in answer.items))
    if at is not None and asking.explain and found.source == "model":
        whys = await services.explainer.explain(
            asking.user_id, found, at, asking.reasons, exclude_seen=asking.exclude_seen
        )
        for item, why in zip(answer.items, whys, strict=True):
            item.because = because(why)
    return answer

"""GET and POST /recommend."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field

from service.catalogue.exploration import Exploration, seed_of
from service.engine.requests import Recommendation
from service.http.answers import explain, recommended
from service.http.dependencies import Services, ServicesDep, check_k
from service.http.fields import QueryFields
from service.http.problems import ProblemError, declared
from service.http.recommendation_options import (
    RecommendationOptions,
    next_cursor,
    resolved,
)
from service.http.schemas import Body, Id, Recommendations, example

router = APIRouter(tags=["recommendations"])


class _OfUser(Body):
    user_id: Id


class RecommendationRequest(RecommendationOptions, _OfUser):  # the user's id is the first field
    """The parameters of GET /recommend, for more of them than a URL holds."""

    model_config = example(user_id="ann", k=5)

    allow_stale: bool = Field(
        False, description="a state in memory will do: faster, may miss the newest events"
    )
    explain: bool = Field(False, description="say which interactions moved the scores")
    reasons: int = Field(3, ge=1, description="most of them for an item")
    explore: bool = Field(
        True,
        description="whether some places may be for items of which little is known, where the "
        "service explores (explore_share); `false`, and `live=false`: none",
    )


class RecommendationQuery(RecommendationRequest):
    """The same, of the text that a URL has."""

    model_config = ConfigDict(strict=False)

    fields: QueryFields = None


@router.get(
    "/recommend",
    summary="Recommend items to a user",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def recommend(
    query: Annotated[RecommendationQuery, Query()], services: ServicesDep
) -> Recommendations:
    """The best items for a user, by everything that was logged before the call."""
    return await _recommend(services.of(query.user_id), query)


@router.post(
    "/recommend",
    summary="Recommend items to a user, with long options",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def post_recommend(body: RecommendationRequest, services: ServicesDep) -> Recommendations:
    """GET /recommend with its parameters in the body."""
    return await _recommend(services.of(body.user_id), body)


async def _recommend(services: Services, asked: RecommendationRequest) -> Recommendations:
    # What costs nothing to see comes before what the options name is looked up.
    user_id, k = asked.user_id, asked.k
    check_k(services, k)
    if asked.explain and k > (most := services.settings.explain_k):
        raise ProblemError(422, f"k: at most {most} with explain, not {k}", field="k")
    options = await resolved(services, asked)
    found = await services.engine.recommend(
        user_id,
        k,
        at_ms=asked.at,
        exclude_seen=asked.exclude_seen,
        masked=options.masked,
        allow_stale=asked.allow_stale,
        choice=options.choice,
        live=asked.live,
    )
    exploration = services.served.exploration
    if exploration is not None and asked.explore and asked.live:
        found = _with_explored(services, exploration, user_id, found)
    answer = Recommendations(
        user_id=user_id,
        items=recommended(services, found, asked.fields),
        version=found.version,
        at=found.at_ms,
        source=found.source,
        stale=found.stale,
        history_truncated=found.truncated,
        model=services.engine.identity,
        edition=services.engine.edition,
        next=next_cursor(services, options.shown, found.ranking.items, k),
        warnings=options.warnings,
    )
    outcomes = services.context.outcomes
    if outcomes is not None:
        edition = answer.edition if found.source == "model" else ""
        items = (item.item_id for item in answer.items if not item.explored)
        outcomes.shown(user_id, edition, items, services.deployment.arms(services.served))
        if exploration is not None:
            explored = [item.item_id for item in answer.items if item.explored]
            rows = found.ranking.items
            little_known = rows[exploration.little_known(rows)].tolist()
            ids = services.catalogue.ids
            outcomes.explored(user_id, explored, [ids[row - 1] for row in little_known])
    if asked.explain and found.source in ("model", "live"):
        explanations = await services.explainer.explain(
            user_id, found, asked.reasons, exclude_seen=asked.exclude_seen
        )
        for item, explanation in zip(answer.items, explanations, strict=True):
            explain(item, explanation)
    return answer


def _with_explored(
    services: Services, exploration: Exploration, user_id: str, found: Recommendation
) -> Recommendation:
    """The answer with what is to be known better in some places."""
    seed = seed_of(user_id, found.version, round(1000 * time.time()))
    view = services.engine.runner.retrieval.view
    return replace(found, ranking=exploration.arrange(found.ranking, found.ask, view, seed))

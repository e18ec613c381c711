"""GET and POST /recommend, and POST /admin/recommend."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field

from service.catalogue.exploration import Exploration, seed_of
from service.engine.requests import Recommendation
from service.http.answers import put_reasons, recommended
from service.http.dependencies import Services, ServicesDep
from service.http.fields import QueryFields
from service.http.problems import ProblemError, declared
from service.http.recommendation_options import (
    RecommendationOptions,
    check_size,
    next_cursor,
    resolved,
)
from service.http.schemas import Body, Id, Recommendations, example

router = APIRouter(tags=["recommendations"])
admin = APIRouter(prefix="/admin/recommend", tags=["operation"])


class _OfUser(Body):
    user_id: Id


class RecommendationRequest(RecommendationOptions, _OfUser):  # the user's id is the first field
    """The parameters of GET /recommend, for more of them than a URL holds."""

    model_config = example(user_id="ann", k=5)

    allow_stale: bool = Field(
        False, description="a state in memory will do: faster, may miss the newest events"
    )
    explore: bool = Field(
        True,
        description="whether some places may be for items of which little is known, where the "
        "service explores (explore_share); `false`, and `live=false`: none",
    )


class ModelRecommendationRequest(RecommendationRequest):
    """The same, and the model that is to answer."""

    model_config = example(user_id="ann", edition="8505dca36d520613+5f0c2a9e")

    edition: str = Field(description="`edition` of the answers of a model that is served now")


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


@admin.post(
    "",
    summary="Recommend items to a user by a model of your choice",
    responses=declared(422, 503),
    response_model_exclude_none=True,
)
async def recommend_by(body: ModelRecommendationRequest, services: ServicesDep) -> Recommendations:
    """POST /recommend as a model would answer that the user does not get: everybody's, or one on
    trial. The list counts as shown to nobody."""
    models = services.deployment.models
    served = next((one for one in models if one.edition == body.edition), None)
    if served is None:
        others = ", ".join(f"{one.edition} ({one.name})" for one in models)
        raise ProblemError(
            422, f"edition: no model that is served; these are: {others}", field="edition"
        )
    return await _recommend(replace(services, served=served), body, counts=False)


async def _recommend(
    services: Services, asked: RecommendationRequest, *, counts: bool = True
) -> Recommendations:
    """`counts`: the list is shown to the user."""
    # What costs nothing to see comes before what the options name is looked up.
    user_id, k = asked.user_id, asked.k
    check_size(services, asked)
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
    if outcomes is not None and counts:
        edition = answer.edition if found.source == "model" else ""
        items = (item.item_id for item in answer.items if not item.explored)
        outcomes.shown(user_id, edition, items, services.deployment.arms(services.served))
        if exploration is not None:
            explored = [item.item_id for item in answer.items if item.explored]
            rows = found.ranking.items
            little_known = rows[exploration.little_known(rows)].tolist()
            ids = services.catalogue.ids
            outcomes.explored(user_id, explored, [ids[row - 1] for row in little_known])
    if asked.explain:
        await put_reasons(services, answer.items, found, user_id, asked)
    return answer


def _with_explored(
    services: Services, exploration: Exploration, user_id: str, found: Recommendation
) -> Recommendation:
    """The answer with what is to be known better in some places."""
    seed = seed_of(user_id, found.version, round(1000 * time.time()))
    view = services.engine.runner.retrieval.view
    return replace(found, ranking=exploration.arrange(found.ranking, found.ask, view, seed))

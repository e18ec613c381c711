"""POST /interactions and /interactions/batch."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from typing import Literal

from fastapi import APIRouter

from model.times import iso
from service.engine.requests import Overloaded
from service.http.dependencies import Services, ServicesDep
from service.http.problems import ProblemError, declared
from service.http.schemas import (
    BatchResult,
    BatchResults,
    Interaction,
    InteractionBatch,
    InteractionResult,
)
from service.store.errors import StoreError
from service.store.events import NewEvent, Outcome, Verdict, new_uid

router = APIRouter(prefix="/interactions", tags=["interactions"])

_Refusal = tuple[int, Literal["conflict", "rejected", "future"], str, str]
_REFUSALS: dict[Verdict, _Refusal] = {
    Verdict.CONFLICT: (
        409, "conflict", "event_id", "this event_id was used for another interaction",
    ),
    Verdict.REJECTED: (
        409, "rejected", "timestamp",
        "older than the user's newest interaction, or than as many as a late one may move",
    ),
    Verdict.FUTURE: (422, "future", "timestamp", "too far ahead of the store's clock"),
}  # fmt: skip
"""HTTP status, status within a batch, field and reason of what is kept out of the log."""


def _event(interaction: Interaction) -> NewEvent:
    return NewEvent(
        new_uid(),
        interaction.item_id,
        interaction.timestamp,
        interaction.event_id,
        interaction.kind,
        interaction.weight,
    )


def _too_heavy(interaction: Interaction, services: Services) -> str | None:
    weight, most = interaction.weight, services.settings.max_weight
    if weight is None or weight <= most:
        return None
    return f"{weight:g} is more than one interaction may weigh: at most {most:g} (max_weight)"


def _status(
    vocabulary: Container[str], item_id: str, verdict: Verdict
) -> Literal["applied", "late", "unknown_item", "duplicate"]:
    if verdict is Verdict.DUPLICATE:
        return "duplicate"
    if item_id not in vocabulary:
        return "unknown_item"
    return "late" if verdict is Verdict.LATE else "applied"


@router.post("", summary="Store an interaction", responses=declared(409, 422, 503))
async def post_interaction(body: Interaction, services: ServicesDep) -> InteractionResult:
    """Logs one interaction; when this answers it is durable, and every recommendation knows it."""
    if (heavy := _too_heavy(body, services)) is not None:
        raise ProblemError(422, f"body.weight: {heavy}", field="body.weight")
    services = services.of(body.user_id)
    (outcome,) = await services.engine.append(body.user_id, [_event(body)])
    if (refusal := _REFUSALS.get(outcome.verdict)) is not None:
        status, _, field, reason = refusal
        raise ProblemError(status, f"{field}: {reason}", field=field)
    assert outcome.version is not None
    assert outcome.time_ms is not None
    return InteractionResult(
        user_id=body.user_id,
        item_id=body.item_id,
        version=outcome.version,
        status=_status(services.engine.vocabulary, body.item_id, outcome.verdict),
        timestamp=iso(outcome.time_ms),
    )


@router.post("/batch", summary="Store many interactions", responses=declared(422, 503))
async def post_batch(body: InteractionBatch, services: ServicesDep) -> BatchResults:
    """Logs many interactions; each gets a result of its own, also when others fail."""
    places: dict[str, list[int]] = {}
    results: list[BatchResult | None] = [None] * len(body.interactions)
    for place, interaction in enumerate(body.interactions):
        if (heavy := _too_heavy(interaction, services)) is None:
            places.setdefault(interaction.user_id, []).append(place)
        else:
            results[place] = BatchResult(status="rejected", detail=f"weight: {heavy}")
    step = services.log.max_events
    while places:
        upcoming = {
            user_id: [_event(body.interactions[place]) for place in own[:step]]
            for user_id, own in places.items()
        }
        for user_id, found in (await _appended(services, upcoming)).items():
            own = places.pop(user_id)
            if isinstance(found, Exception):
                # Later ones of this user would overtake: they fail with it.
                for place in own:
                    results[place] = BatchResult(status="failed", detail=str(found))
                continue
            vocabulary = services.of(user_id).engine.vocabulary
            for place, outcome in zip(own[:step], found, strict=True):
                results[place] = _batch_result(vocabulary, body.interactions[place], outcome)
            if len(own) > step:
                places[user_id] = own[step:]
    filled = [result for result in results if result is not None]
    return BatchResults(
        results=filled, accepted=sum(result.version is not None for result in filled)
    )


async def _appended(
    services: Services, events: Mapping[str, list[NewEvent]]
) -> dict[str, list[Outcome] | StoreError | Overloaded]:
    """By user, what became of the events, or why nothing did."""
    found: dict[str, list[Outcome] | StoreError | Overloaded] = {}
    waiting: dict[str, asyncio.Future[list[Outcome]]] = {}
    try:
        for user_id, own in events.items():
            try:
                waiting[user_id] = services.of(user_id).engine.submit(user_id, own, begun=True)
            except Overloaded as error:
                found[user_id] = error
        for user_id, outcomes in waiting.items():
            try:
                found[user_id] = await outcomes
            except (StoreError, Overloaded) as error:
                found[user_id] = error
    finally:  # whoever leaves has its appends left, too
        for outcomes in waiting.values():
            outcomes.cancel()
    return found


def _batch_result(
    vocabulary: Container[str], interaction: Interaction, outcome: Outcome
) -> BatchResult:
    if (refusal := _REFUSALS.get(outcome.verdict)) is not None:
        _, status, field, reason = refusal
        return BatchResult(status=status, detail=f"{field}: {reason}")
    return BatchResult(
        status=_status(vocabulary, interaction.item_id, outcome.verdict),
        version=outcome.version,
        timestamp=iso(outcome.time_ms) if outcome.time_ms is not None else None,
    )

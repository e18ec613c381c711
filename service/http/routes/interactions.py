"""POST /interactions and /interactions/batch."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Literal

from fastapi import APIRouter

from model.times import iso
from service.engine.engine import Overloaded
from service.http.dependencies import Services, ServicesDep
from service.http.problems import ProblemError, declared
from service.http.schemas import (
    BatchResult,
    BatchResults,
    Interaction,
    InteractionBatch,
    InteractionResult,
)
from service.store.event_log import NewEvent, Outcome, Verdict, new_uid
from service.store.store import StoreError

router = APIRouter(prefix="/interactions", tags=["interactions"])

_REASONS = {
    Verdict.CONFLICT: (409, "event_id", "this event_id was used for another interaction"),
    Verdict.REJECTED: (
        409,
        "timestamp",
        "older than the user's newest interaction, or than as many as a late one may move",
    ),
    Verdict.FUTURE: (422, "timestamp", "too far ahead of the store's clock"),
}


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


@router.post("", responses=declared(409, 422, 503))
async def post_interaction(body: Interaction, services: ServicesDep) -> InteractionResult:
    """Logs one interaction; when this answers it is durable, and every recommendation knows it."""
    if (heavy := _too_heavy(body, services)) is not None:
        raise ProblemError(422, f"body.weight: {heavy}", field="body.weight")
    services = services.of(body.user_id)
    (outcome,) = await services.engine.append(body.user_id, [_event(body)])
    if outcome.verdict in _REASONS:
        status, field, reason = _REASONS[outcome.verdict]
        raise ProblemError(status, f"{field}: {reason}", field=field)
    assert outcome.version is not None
    assert outcome.time_ms is not None
    return InteractionResult(
        user_id=body.user_id,
        item_id=body.item_id,
        version=outcome.version,
        status=_status(services.engine.computer.vocabulary, body.item_id, outcome.verdict),
        timestamp=iso(outcome.time_ms),
    )


@router.post("/batch", responses=declared(422, 503))
async def post_batch(body: InteractionBatch, services: ServicesDep) -> BatchResults:
    """Logs many interactions; each gets a result of its own, also when others fail."""
    places: dict[str, list[int]] = {}
    results: list[BatchResult | None] = [None] * len(body.interactions)
    for place, interaction in enumerate(body.interactions):
        if (heavy := _too_heavy(interaction, services)) is None:
            places.setdefault(interaction.user_id, []).append(place)
        else:
            results[place] = BatchResult(status="rejected", detail=f"weight: {heavy}")
    step, start = services.log.max_events, 0
    while places:
        # A turn is the next events of each user.
        turn: list[tuple[str, list[int], Services, asyncio.Future[list[Outcome]]]] = []
        failed: list[tuple[list[int], Exception]] = []
        try:
            for user_id, own in places.items():
                of_user = services.of(user_id)
                events = [_event(body.interactions[p]) for p in own[start : start + step]]
                try:
                    turn.append(
                        (user_id, own, of_user, of_user.engine.submit(user_id, events, begun=True))
                    )
                except Overloaded as error:
                    failed.append((own, error))
            places = {}
            for user_id, own, of_user, done in turn:
                try:
                    outcomes = await done
                except (StoreError, Overloaded) as error:
                    failed.append((own, error))
                    continue
                vocabulary = of_user.engine.computer.vocabulary
                for place, outcome in zip(own[start : start + step], outcomes, strict=True):
                    results[place] = _batch_result(vocabulary, body.interactions[place], outcome)
                if len(own) > start + step:
                    places[user_id] = own
        finally:  # whoever leaves has its appends left, too
            for *_, done in turn:
                done.cancel()
        for own, reason in failed:
            # Later ones of this user would overtake: they fail with it.
            for place in own[start:]:
                results[place] = BatchResult(status="failed", detail=str(reason))
        start += step
    filled = [result for result in results if result is not None]
    return BatchResults(
        results=filled, accepted=sum(result.version is not None for result in filled)
    )


def _batch_result(
    vocabulary: Container[str], interaction: Interaction, outcome: Outcome
) -> BatchResult:
    if outcome.verdict in _REASONS:
        _, field, reason = _REASONS[outcome.verdict]
        kept: Literal["conflict", "rejected", "future"] = {
            Verdict.CONFLICT: "conflict",
            Verdict.REJECTED: "rejected",
        }.get(outcome.verdict, "future")  # type: ignore[assignment]
        return BatchResult(status=kept, detail=f"{field}: {reason}")
    return BatchResult(
        status=_status(vocabulary, interaction.item_id, outcome.verdict),
        version=outcome.version,
        timestamp=iso(outcome.time_ms) if outcome.time_ms is not None else None,
    )

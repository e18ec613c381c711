"""Rankings as the API gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.times import iso
from service.engine.requests import Recommendation
from service.http.dependencies import Services
from service.http.fields import put_fields
from service.http.recommendation_options import RecommendationOptions
from service.http.schemas import LivePart, Path, Reason, RecommendedItem
from service.store.events import Event


def recommended(
    services: Services, found: Recommendation, fields: Sequence[str] | None
) -> list[RecommendedItem]:
    """The items of an answer, best first, with these attributes of each."""
    catalogue, ranking = services.catalogue, found.ranking
    ids, titles, trained = catalogue.ids, catalogue.titles, catalogue.trained
    newer: Path = "live" if ranking.live else "cold"
    other: Path = "live" if ranking.live else "popular"
    by_model = found.source == "model"
    items = [
        RecommendedItem(
            ids[row - 1],
            score,
            ("model" if row <= trained else newer) if by_model else other,
            titles[row - 1],
        )
        for row, score in zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True)
    ]
    if ranking.promoted is not None:
        for place in np.flatnonzero(ranking.promoted):
            items[place].path = "promoted"
    if ranking.explored is not None:
        for place in np.flatnonzero(ranking.explored):
            items[place].path, items[place].explored = "explored", True
    if fields is not None:
        put_fields(items, fields, catalogue)
    return items


async def put_reasons(
    services: Services,
    items: Sequence[RecommendedItem],
    found: Recommendation,
    whose: str | Sequence[Event],
    asked: RecommendationOptions,
) -> None:
    """Puts into the items of an answer why they are there, where that is more than popularity.

    Args:
        whose: the user's id, or the events of a session.

    Raises:
        HistoryChanged, Overloaded, StoreError: as `Explainer.explain`.
    """
    if found.source not in ("model", "live"):
        return
    explanations = await services.explainer.explain(
        whose, found, asked.reasons, exclude_seen=asked.exclude_seen
    )
    for item, explanation in zip(items, explanations, strict=True):
        if explanation.live is not None:
            item.live = LivePart(**explanation.live._asdict())
        item.because = [
            Reason(
                version=reason.event.version,
                item_id=reason.event.item_id,
                timestamp=iso(reason.event.time_ms),
                contribution=reason.contribution,
            )
            for reason in explanation.reasons
        ]

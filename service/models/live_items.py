"""What a model's retrieval is told of what has happened since its training."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from model.artefact import Artefact
from model.live.ranker import LiveRanker
from service.catalogue.catalogue import Catalogue
from service.catalogue.retrieval import Retrieval
from service.live.live_evidence import LiveEvidence
from service.store.follower import Follower

NOTED_EVERY_S = 1.0


def follow_evidence(
    retrieval: Retrieval, artefact: Artefact, catalogue: Catalogue, live: LiveEvidence
) -> None:
    """Retrieval answers by the evidence as well, if the artefact says how."""
    if artefact.mixture is None:
        return
    model = artefact.model
    vectors = model.scoring_vectors.detach().float().cpu().numpy()
    ranker = LiveRanker(
        lambda: live.evidence, vectors, catalogue.row, artefact.mixture, model.config.n_items
    )
    ranker.warm_up()
    retrieval.follow(ranker)


@asynccontextmanager
async def new_items_noted(catalogue: Catalogue, live: LiveEvidence) -> AsyncIterator[None]:
    """Meanwhile items that have had events, and that neither the model nor a record knows, are
    items of the catalogue."""
    evidence, noted = live.evidence, 0

    async def note() -> None:
        nonlocal evidence, noted
        if live.evidence is not evidence:
            evidence, noted = live.evidence, 0
        size = len(evidence.item_ids)
        if size > noted:
            await catalogue.records.note(evidence.item_ids[noted:size])
            noted = size

    await note()
    async with Follower(note, NOTED_EVERY_S, "items that are new in the feed are not noted"):
        yield

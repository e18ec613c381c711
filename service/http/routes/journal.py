"""/admin/journal: what became of the models that were trained."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, ValidationError

from model.artefact_store import ArtefactStoreError
from model.journal import Entry, Step, What
from service.http.dependencies import ServicesDep
from service.http.problems import ProblemError, declared
from service.http.routes.admin import models_folder

router = APIRouter(prefix="/admin/journal", tags=["operation"])


class JournalEntry(BaseModel):
    """One thing that became of a model."""

    at: str
    what: What
    round: str | None = Field(description="what was under way")
    model: str | None = Field(description="its name in the models folder")
    step: Step | None
    parent: str | None = Field(description="the model that it was trained from and judged against")
    edition: str | None
    identity: str | None
    until: str | None = Field(description="of the newest interaction that it was trained on")
    events: int | None = Field(description="new ones since the parent's")
    verdict: str | None = Field(description="the judge's")
    figures: dict[str, Any] | None = Field(description="the judge's")
    seconds: dict[str, float] | None = Field(description="of each part of the round")
    reason: str | None
    replaced: str | None = Field(description="the model that everybody had before")


class JournalPage(BaseModel):
    entries: list[JournalEntry] = Field(description="the newest first")


@router.get("", summary="See what was trained", responses=declared(409, 422, 503))
async def get_journal(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="at most so many entries")] = 100,
) -> JournalPage:
    """What the learner did with each model that it trained, the newest entries."""
    folder = models_folder(services)
    try:
        found = await asyncio.to_thread(folder.journal, limit)
    except ArtefactStoreError as error:
        raise ProblemError(503, str(error)) from None
    return JournalPage(entries=list(_whole(reversed(found))))


def _whole(entries: Iterable[Entry]) -> Iterator[JournalEntry]:
    """Without lines that somebody else wrote, with other values."""
    for entry in entries:
        try:
            yield JournalEntry.model_validate(asdict(entry))
        except ValidationError:
            continue

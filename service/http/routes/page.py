"""The page at `/`: files of the package, the same for everybody; and what it shows of the store's
own and of the metrics, which wants a key as all else does."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from model.times import iso
from service.http.dependencies import ServicesDep
from service.http.problems import ProblemError
from service.http.routes.items import ItemId
from service.observe import values
from service.observe.exposition import exposition

router = APIRouter(include_in_schema=False)
data = APIRouter(prefix="/page-data", include_in_schema=False)

_EVERY_S = 1.0
_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    # Nothing from elsewhere but the pictures that items name, no script or style within the markup,
    # and none made of text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' https:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    found = {}
    for path in _FOLDER.iterdir():
        if media_type := _TYPES.get(path.suffix):
            content = path.read_bytes()
            digest = hashlib.blake2b(content, digest_size=12).hexdigest()
            found[path.name] = _File(content, f"{media_type}; charset=utf-8", f'"{digest}"')
    return found


class ExampleEvent(BaseModel):
    item_id: str
    timestamp: str
    kind: str | None


class ExamplePerson(BaseModel):
    """Somebody with a record, but not who."""

    likes: list[str]
    events: list[ExampleEvent]


class ExamplePeople(BaseModel):
    people: list[ExamplePerson]


@data.get("/people")
async def get_people(services: ServicesDep) -> ExamplePeople:
    """A few people to begin with, at most three; the same ones for a minute."""
    moves = services.engine.runner.effects.moves
    people = [
        ExamplePerson(
            likes=list(person.likes),
            events=[
                ExampleEvent(item_id=event.item_id, timestamp=iso(event.time_ms), kind=event.kind)
                for event in person.events
            ],
        )
        for person in await services.people.people(services.catalogue, moves)
    ]
    return ExamplePeople(people=people)


class ItemNumbers(BaseModel):
    """What happens with an item; None: that is not counted.

    a_day: interactions, averaged over the last day, week, month and half year: each counts for
    2^-(its age / that time). shown, taken: only where the service explores, and as long as little
    is known of the item.
    """

    interactions: float | None = None
    since: str | None = None
    a_day: tuple[float, ...] = ()
    shown: int | None = None
    taken: int | None = None


@data.get("/items/{item_id}")
async def get_item_numbers(item_id: ItemId, services: ServicesDep) -> ItemNumbers:
    """How an item is used, as far as this process counts."""
    live, counts = services.context.live, services.context.item_counts
    shown, taken = (None, None) if counts is None else counts.of(item_id)
    if live is None:
        return ItemNumbers(shown=shown, taken=taken)
    use = live.evidence.use(item_id, round(1000 * time.time()))
    if use is None:
        return ItemNumbers(interactions=0, shown=shown, taken=taken)
    since = iso(use.first_ms)
    return ItemNumbers(
        interactions=use.total, since=since, a_day=use.a_day, shown=shown, taken=taken
    )


class MetricsReader:
    """What `/metrics` has, for any number of pages: made once a second at most."""

    def __init__(self) -> None:
        self._begun_s = float("-inf")
        self._reading: asyncio.Task[tuple[bytes, str]] | None = None

    async def read(self) -> tuple[bytes, str]:
        """The text and its content type."""
        now_s = time.monotonic()
        if self._reading is None or (self._reading.done() and now_s - self._begun_s >= _EVERY_S):
            values.write()
            self._begun_s = now_s
            self._reading = asyncio.create_task(asyncio.to_thread(exposition))
        return await asyncio.shield(self._reading)


@data.get("/metrics")
async def get_page_metrics(request: Request) -> Response:
    """The metrics of all workers, on the API's port and with its keys."""
    reader: MetricsReader = request.app.state.page_metrics
    body, media_type = await reader.read()
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})


@router.get("/")
async def get_page(request: Request) -> Response:
    """The page."""
    return _answer("index.html", request)


@router.get("/page/{name}")
async def get_file(name: str, request: Request) -> Response:
    """A file that the page is made of."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    file = _files().get(name)
    if file is None:
        raise ProblemError(404, f"{name!r} is no file of the page")
    headers = {**_HEADERS, "ETag": file.etag}
    known = request.headers.get("If-None-Match", "").replace("W/", "")
    if file.etag in (one.strip() for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})

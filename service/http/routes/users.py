"""GET and DELETE /users/{id}, the export of a history, and the list of all users."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, BeforeValidator, Field

from model.items import LONGEST_ID
from model.times import iso
from service.bulk.user_listing import NoSuchPlace
from service.catalogue.cursor import CursorError, read_users, write_users
from service.http.dependencies import ServicesDep
from service.http.problems import ProblemError, declared
from service.http.schemas import (
    Erased,
    HistoryPage,
    Id,
    ListedUser,
    LoggedEvent,
    User,
    UserPage,
)
from service.store.events import Event

router = APIRouter(prefix="/users", tags=["users"])


def decoded(segment: str) -> str:
    """A segment of a path, as it was before percent-encoding."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8, percent-encoded") from None


UserId = Annotated[Id, BeforeValidator(decoded), Path(description="percent-encoded")]


class UserQuery(BaseModel):
    limit: int = Field(
        100, ge=1, le=1000, description="how many a page has, about: it may have a few more"
    )
    after: str | None = Field(None, description="`next` of the page before")
    starting_with: str = Field("", max_length=LONGEST_ID, description="what their ids begin with")


@router.get("", summary="Find users", responses=declared(403, 422, 503))
async def list_users(query: Annotated[UserQuery, Query()], services: ServicesDep) -> UserPage:
    """The users with a record, in no order; with an admin key. A page takes a quarter of a second
    at most, and may be empty though others follow: the last has no `next`."""
    try:
        place = None if query.after is None else read_users(services.seal, query.after)
        found = await services.users.page(place, query.limit, query.starting_with)
    except CursorError as error:
        raise ProblemError(422, str(error), field="after") from None
    except NoSuchPlace:
        raise ProblemError(
            422, "after: the store has other servers by now; begin anew without it", field="after"
        ) from None
    return UserPage(
        users=[
            ListedUser(
                user_id=user.user_id,
                version=user.version,
                last_time=None if user.last_time_ms is None else iso(user.last_time_ms),
            )
            for user in found.users
        ],
        next=None if found.next is None else write_users(services.seal, found.next),
    )


def _unknown(user_id: str) -> ProblemError:
    return ProblemError(404, f"user_id: nothing is known of {user_id!r}", field="user_id")


@router.get(
    "/{user_id}/history", summary="Export a user's history", responses=declared(404, 422, 503)
)
async def get_history(
    user_id: UserId,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, description="only interactions after this version")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> HistoryPage:
    """A user's interactions, oldest first, as the log has them."""
    record = await services.log.describe(user_id)
    if record is None:
        raise _unknown(user_id)
    found: list[LoggedEvent] = []
    async for page in services.log.events(user_id, after):
        found += map(_logged, page)  # page by page: all at once would hold the event loop
        if len(found) > limit:
            break
    more = len(found) > limit
    found = found[:limit]
    return HistoryPage(
        user_id=user_id,
        events=found,
        history_truncated=record.oldest > 1,
        next=found[-1].version if more else None,
    )


def _logged(event: Event) -> LoggedEvent:
    return LoggedEvent(
        version=event.version,
        item_id=event.item_id,
        timestamp=iso(event.time_ms),
        given_timestamp=None if event.given_ms is None else iso(event.given_ms),
        event_id=event.event_id,
        kind=event.kind,
        weight=event.weight,
    )


@router.get("/{user_id}", summary="Look at a user", responses=declared(404, 422, 503))
async def get_user(user_id: UserId, services: ServicesDep) -> User:
    """What is kept of a user."""
    record = await services.log.describe(user_id)
    if record is None:
        raise _unknown(user_id)
    engine = services.of(user_id).engine
    return User(
        user_id=user_id,
        version=record.version,
        last_time=iso(record.last_time_ms),
        bytes=record.bytes,
        state_bytes=engine.pool.layout.nbytes(),
        history_truncated=record.oldest > 1,
        model=engine.identity,
        edition=engine.edition,
    )


@router.delete("/{user_id}", summary="Erase a user", responses=declared(422, 503))
async def delete_user(user_id: UserId, services: ServicesDep) -> Erased:
    """Forgets a user: the record, the snapshots and the states in memory of every worker."""
    return Erased(user_id=user_id, erased=await services.of(user_id).engine.erase(user_id))

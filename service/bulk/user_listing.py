"""The users of a store, page by page, each page a bounded piece of a SCAN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from service.catalogue.cursor import UsersPlace
from service.engine.one_at_a_time import OneAtATime
from service.store.errors import RecordDamaged, raised
from service.store.event_log import EventLog, LogReply, LogRequest

PAGE_S = 0.25
"""After so long a page ends, whatever it has."""
_AT_ONCE = 100
"""Users in one exchange, which holds the store for a few milliseconds."""
_SCANNED_LEAST = 10


class NoSuchPlace(ValueError):
    """A page that began on a server which the store no longer has."""


class ListedUser(NamedTuple):
    """`version`, `last_time_ms`: None where the record is damaged."""

    user_id: str
    version: int | None
    last_time_ms: int | None


class UserPage(NamedTuple):
    """`next`: where the next page begins; None: there is none."""

    users: list[ListedUser]
    next: UsersPlace | None


class UserListing:
    """Args:
    max_wait_s: who would wait longer for the pages of others is refused.
    """

    def __init__(self, log: EventLog, max_wait_s: float) -> None:
        self._log, self._turn = log, OneAtATime(max_wait_s)

    async def page(self, place: UsersPlace | None, limit: int, starting_with: str) -> UserPage:
        """Users from a place on, in no order. A page ends when it has `limit` of them, and may have
        a few more; or when its time is over, and may have none.

        Whoever is there from the first page to the last is on one of them; one may come twice while
        records change.

        Raises:
            NoSuchPlace
            Overloaded: nothing was done.
            StoreError
        """
        return await self._turn.run(lambda: self._page(place, limit, starting_with))

    async def _page(self, place: UsersPlace | None, limit: int, starting_with: str) -> UserPage:
        until = time.monotonic() + PAGE_S
        found = dict[str, None]()
        while True:
            page, place = await self._scanned(place, limit - len(found), starting_with)
            found |= dict.fromkeys(page)
            if place is None or len(found) >= limit or time.monotonic() >= until:
                break
        users, ids = list[ListedUser](), list(found)
        for start in range(0, len(ids), _AT_ONCE):
            users += await self._described(ids[start : start + _AT_ONCE])
        return UserPage(users, place)

    async def _scanned(
        self, place: UsersPlace | None, wanted: int, starting_with: str
    ) -> tuple[list[str], UsersPlace | None]:
        """About so many users from a place on, and the place behind them."""
        store, keys = self._log.store, self._log.keys
        nodes = {node.name: node for node in await store.nodes()}
        # The one server of a store has another name for whoever reaches it in another way.
        names = sorted(nodes) if len(nodes) > 1 else [""]
        name, cursor = place or UsersPlace(names[0], "0")
        if name not in names:
            raise NoSuchPlace
        node = nodes[name] if name else next(iter(nodes.values()))
        pattern, count = keys.starting_with(starting_with) + "*", max(wanted, _SCANNED_LEAST)
        reply = await store.request(("SCAN", cursor, "MATCH", pattern, "COUNT", count), at=node)
        following, records = reply
        users = [keys.user_of(record) for record in records]
        if following != b"0":
            return users, UsersPlace(name, following.decode())
        later = names[names.index(name) + 1 :]
        return users, UsersPlace(later[0], "0") if later else None

    async def _described(self, users: Sequence[str]) -> list[ListedUser]:
        """Those of them that have a record."""
        replies = await self._log.exchange([LogRequest(user, page=1) for user in users])
        found = list[ListedUser]()
        for user, reply in zip(users, replies, strict=True):
            if isinstance(reply, RecordDamaged):
                found.append(ListedUser(user, None, None))
                continue
            record: LogReply = raised(reply)
            if record.events:
                newest = record.events[-1]
                found.append(ListedUser(user, newest.version, newest.time_ms))
        return found

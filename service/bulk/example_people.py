"""A few people of the store to look at: real histories, as unlike each other as a look at some
hundred records finds, and without their ids."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.bulk.user_listing import UserListing
from service.catalogue.catalogue import Catalogue
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import Event

MOST_PEOPLE = 3
KEPT_S = 60
LOOKED_AT, READ = 300, 60
"""So many records are found, and so many of those with the most suitable length are read."""
NEWEST = 40
"""Interactions of a person, as far as they are kept."""
SUITABLE = 12
"""Interactions that tell a taste, and that one more still changes."""
LEAST = 3
VISITORS = "guest-"
"""What the ids begin with that the page gives to its visitors."""
_AT_ONCE = 20
_NAMED = 2
_LIKED_LEAST = 2
"""Interactions with a category, from which on somebody likes it."""


@dataclass(frozen=True)
class ExamplePerson:
    """`likes`: categories, or titles where there are none, the most telling first; `events`: the
    newest ones, oldest first."""

    likes: tuple[str, ...]
    events: tuple[Event, ...]


class ExamplePeople:
    """Finds them, and keeps those found for a minute."""

    def __init__(self, log: EventLog, users: UserListing) -> None:
        self._log, self._users = log, users
        self._one = asyncio.Lock()
        self._found: list[ExamplePerson] = []
        self._until = 0.0

    async def people(
        self, catalogue: Catalogue, moves: Callable[[Event], bool]
    ) -> list[ExamplePerson]:
        """At most `MOST_PEOPLE`; none where nobody has enough interactions.

        Args:
            moves: whether the model's state heeds an interaction.

        Raises:
            Overloaded
            StoreError
        """
        async with self._one:
            if time.monotonic() >= self._until:
                histories = await self._histories(moves)
                self._found = _unlike(histories, catalogue)
                self._until = time.monotonic() + KEPT_S
            return self._found

    async def _histories(self, moves: Callable[[Event], bool]) -> list[list[Event]]:
        listed = (await self._users.page(None, LOOKED_AT, "")).users
        lengths = {
            user.user_id: user.version
            for user in listed
            if user.version is not None
            and user.version >= LEAST
            and not user.user_id.startswith(VISITORS)
        }
        users = sorted(lengths, key=lambda user: (abs(lengths[user] - SUITABLE), user))[:READ]
        found = list[list[Event]]()
        for start in range(0, len(users), _AT_ONCE):
            asked = [LogRequest(user, page=NEWEST) for user in users[start : start + _AT_ONCE]]
            for reply in await self._log.exchange(asked):
                if isinstance(reply, StoreError):  # of one record: the others will do
                    continue
                events = [event for event in reply.events if moves(event)]
                if len(events) >= LEAST:
                    found.append(events)
        return found


def _unlike(histories: Sequence[list[Event]], catalogue: Catalogue) -> list[ExamplePerson]:
    """Those that like what the ones before do not, and like it most."""
    tastes = [_taste(events, catalogue) for events in histories]
    everybody = Counter(name for taste in tastes for name in taste)
    ranked = [
        sorted(taste, key=lambda name: (-taste[name] / everybody[name] ** 0.5, name))[:_NAMED]
        for taste in tastes
    ]
    telling = sorted(
        range(len(histories)),
        key=lambda place: (
            -sum(tastes[place][name] for name in ranked[place])
            / sum(tastes[place].values(), start=1)
        ),
    )
    chosen, named = list[ExamplePerson](), set[str]()
    for place in telling:
        likes = ranked[place]
        if likes and named.isdisjoint(likes) and len(chosen) < MOST_PEOPLE:
            chosen.append(ExamplePerson(tuple(likes), tuple(histories[place])))
            named.update(likes)
    return chosen


def _taste(events: Iterable[Event], catalogue: Catalogue) -> Counter[str]:
    """How many interactions are with each category that somebody likes; by title where the
    catalogue has no categories."""
    rows = [row for event in events if (row := catalogue.row(event.item_id)) is not None]
    found = Counter(name for row in rows for name in catalogue.categories(row))
    liked = Counter({name: count for name, count in found.items() if count >= _LIKED_LEAST})
    if found:
        return liked
    return Counter(catalogue.titles[row - 1] or catalogue.ids[row - 1] for row in rows)

"""How often items are interacted with: of all time, and of late.

Layout of the keys (`<ns>` a namespace), each a sorted set from item id to a number:

    <ns>:popular:all                  interactions
    <ns>:popular:<half-life>:<epoch>  of the events of an epoch, the sum of 2 ^ (age at the event of
                                      the epoch / half-life)

An interaction counts for 2 ^ -(its age / half-life). Numbers are kept as of the beginning of an
epoch of 16 half-lives (forward decay: Cormode and others, 2009), so they only ever grow: at a
moment, those of this epoch and of the one before are scaled by one factor each. What is older
counts for less than 2 ^ -16 and is left out, and its keys expire.

What an erased user's interactions had added is taken back, by the same arithmetic.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from model.kinds import HEAVIEST, KindRules
from service.catalogue.retrieval import Retrieval
from service.catalogue.turns import Steps, in_turns
from service.observe import metrics
from service.store.client import Store
from service.store.errors import StoreError, raised
from service.store.events import Event, NewEvent
from service.store.follower import Follower
from service.store.script import Command, Script

logger = logging.getLogger(__name__)

EPOCH = 16
"""Half-lives from one beginning to the next; 2 ^ 16 events of its end leave a double exact."""
FLUSH_EVERY_S = 0.25
SLACK = 1.25
"""A set is cut back to the most items it may hold when it has so many times as many."""
SETTLED_S = 1.0
"""So long what is taken back waits: what any process had counted before has arrived by then."""
TAKEN_A_CALL = 250
"""Numbers that are taken back in one turn of the store, which others wait for; and events that are
looked at in one step here."""
# A number is no more once so small a part of it is left: rounding, and for recent ones also what
# the clocks of the store and of a process differ by.
_LEFT_OF_ALL, _LEFT_OF_RECENT = 1e-12, 1e-6

# What was forgotten meanwhile (most_items, an epoch that ended) is not made anew.
_TAKE_BACK = Script("""\
#!lua flags=allow-oom
-- KEYS[1] the numbers   ARGV  the part that counts as none | item, how much to take back...
for a = 2, #ARGV, 2 do
  local before = redis.call('ZSCORE', KEYS[1], ARGV[a])
  if before then
    local left = redis.call('ZINCRBY', KEYS[1], '-' .. ARGV[a + 1], ARGV[a])
    if tonumber(left) <= tonumber(before) * tonumber(ARGV[1]) then
      redis.call('ZREM', KEYS[1], ARGV[a])
    end
  end
end
""")

Sums = defaultdict[tuple[str, str], float]
"""Numbers by key and item."""


@dataclass(frozen=True)
class Counts:
    """The items counted most, most first, with their numbers at the time `at_ms`; `decayed`: the
    sum of the recent ones."""

    all: list[tuple[str, float]]
    recent: list[tuple[str, float]]
    at_ms: int

    @property
    def decayed(self) -> float:
        return sum(number for _, number in self.recent)


def _weight(event: NewEvent | Event) -> float:
    return 1.0 if event.weight is None else event.weight


def _now_ms() -> int:
    return round(time.time() * 1000)


class Popularity:
    """Counts what this process logs, together with all others, and keeps a copy of the sums.

    Counts wait in memory and are sent together, once: where the reply is lost they may be missing,
    and are never there twice. A process that is killed loses those of `FLUSH_EVERY_S`. What is
    taken back waits for longer, `settled_s`, and is sent once, too.

    Args:
        half_life_s: after so many seconds an interaction counts half.
        most_items: of items beyond so many, the rarest lose their counts.
        copied: so many items are kept in memory; further down nothing is known.
        least: a smaller sum of recent interactions says nothing.
        heaviest: an interaction that weighs more counts for so much.
        kinds: which events are interactions that count.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        half_life_s: int = 7 * 86_400,
        most_items: int = 100_000,
        copied: int = 1000,
        least: float = 100,
        heaviest: float = HEAVIEST,
        kinds: KindRules | None = None,
        settled_s: float = SETTLED_S,
        refresh_s: float = 5.0,
        clock_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self._store = store
        self._all = f"{namespace}:popular:all"
        self._recent = f"{namespace}:popular:{half_life_s}"
        self._half_life_ms = half_life_s * 1000
        self._most_items, self._copied, self._least = most_items, copied, least
        self._heaviest, self._settled_s = heaviest, settled_s
        self._kinds = kinds or KindRules()
        self._refresh_s, self._clock_ms = refresh_s, clock_ms
        self._waiting = Sums(float)
        self._removed = deque[tuple[float, Sequence[Event]]]()  # with when to take them back
        self._leaving = deque[Command]()
        self._sizes: dict[str, int] = {}
        self._shown: list[tuple[Retrieval, Callable[[str], int | None]]] = []
        self.counts = Counts([], [], clock_ms())

    # -- as an engine's listener ---------------------------------------------------------

    def logged(self, user_id: str, event: NewEvent, time_ms: int) -> None:
        if self._kinds.counts(event.kind):
            at = time_ms if event.time_ms is None else event.time_ms
            self.count(event.item_id, at, _weight(event))

    def erased(self, user_id: str) -> None:
        pass  # what is counted knows no users

    def removed(self, events: Sequence[Event]) -> None:
        self._removed.append((time.monotonic() + self._settled_s, events))

    # -- counting ------------------------------------------------------------------------

    def count(self, item_id: str, time_ms: int, weight: float = 1.0) -> None:
        """Counts an interaction that has just been logged."""
        self._add(self._waiting, item_id, time_ms, weight)

    def _add(self, sums: Sums, item_id: str, time_ms: int, weight: float) -> None:
        """Adds to `sums` what an interaction counts for: later the same as now, but for one that is
        ahead of this clock, which counts as of now."""
        now, weight = self._clock_ms(), min(weight, self._heaviest)
        time_ms = min(time_ms, now)
        sums[self._all, item_id] += weight
        epoch = self._epoch(time_ms)
        if epoch >= self._epoch(now) - 1:
            grown = 2.0 ** ((time_ms - self._begin(epoch)) / self._half_life_ms)
            sums[f"{self._recent}:{epoch}", item_id] += weight * grown

    @property
    def waiting(self) -> int:
        """Numbers that are still to be sent."""
        return len(self._waiting)

    async def flush(self, *, settled: bool = False) -> None:
        """Sends what waits, in one pipeline, and then what is to be taken back, as far as it gets
        before more will wait; `settled`: all of it, now.

        Raises:
            StoreError: what was sent is lost, all or in part.
        """
        if self._waiting:
            await self._send()
        now = float("inf") if settled else time.monotonic()
        while self._removed and self._removed[0][0] <= now:
            subtractions = await in_turns(self._subtractions(self._removed[0][1]))
            self._removed.popleft()
            self._leaving.extend(subtractions)
        while self._leaving and (settled or time.monotonic() < now + FLUSH_EVERY_S):
            raised(*await self._store.once([self._leaving.popleft()], "popularity"))

    async def _send(self) -> None:
        waiting, self._waiting = self._waiting, defaultdict(float)
        keys = sorted({key for key, _ in waiting})
        commands: list[Command] = []
        for key in keys:
            if self._sizes.get(key, 0) > SLACK * self._most_items:
                commands.append(("ZREMRANGEBYRANK", key, 0, -self._most_items - 1))
        commands += [
            ("ZINCRBY", key, repr(float(number)), item) for (key, item), number in waiting.items()
        ]
        for key in keys:
            if key != self._all:  # read until the next epoch ends
                end = self._begin(int(key.rpartition(":")[2]) + 2)
                commands.append(("PEXPIREAT", key, end))
        commands += [("ZCARD", key) for key in keys]
        answers = await self._store.once(commands, "popularity")
        raised(*answers)
        self._sizes = dict(zip(keys, answers[-len(keys) :], strict=True))

    def _subtractions(self, events: Sequence[Event]) -> Steps[list[Command]]:
        """What takes back all that these have added."""
        sums = Sums(float)
        for place, event in enumerate(events):
            if self._kinds.counts(event.kind):
                at = event.time_ms if event.given_ms is None else event.given_ms
                self._add(sums, event.item_id, at, _weight(event))
            if place % TAKEN_A_CALL == 0:
                yield
        by_key = defaultdict[str, list[tuple[str, float]]](list)
        for place, ((key, item), number) in enumerate(sums.items()):
            if number > 0:
                by_key[key].append((item, number))
            if place % TAKEN_A_CALL == 0:
                yield
        commands: list[Command] = []
        for key, numbers in by_key.items():
            left = _LEFT_OF_ALL if key == self._all else _LEFT_OF_RECENT
            for start in range(0, len(numbers), TAKEN_A_CALL):
                words = [
                    word
                    for item, number in numbers[start : start + TAKEN_A_CALL]
                    for word in (item, repr(number))
                ]
                commands.append(_TAKE_BACK.call(key, repr(left), *words))
                yield
        return commands

    # -- the copy ------------------------------------------------------------------------

    def show(self, retrieval: Retrieval, row: Callable[[str], int | None]) -> None:
        """From now on `retrieval` knows what is popular of late; `row`: an item's."""
        self._shown.append((retrieval, row))
        self._tell()

    def forget(self, retrieval: Retrieval) -> None:
        """Ends `show`."""
        self._shown = [shown for shown in self._shown if shown[0] is not retrieval]

    async def refresh(self) -> None:
        """Reads the sums anew.

        Raises:
            StoreError: the copy stays as it was.
        """
        now = self._clock_ms()
        epoch = self._epoch(now)
        keys = [self._all, f"{self._recent}:{epoch - 1}", f"{self._recent}:{epoch}"]
        answers = await self._store.pipeline(
            [("ZREVRANGE", key, 0, self._copied - 1, "WITHSCORES") for key in keys], "popularity"
        )
        raised(*answers)
        ever, *parts = (
            [(item.decode(), float(number)) for item, number in zip(a[::2], a[1::2], strict=True)]
            for a in answers
        )
        recent: dict[str, float] = {}
        for begun, part in zip((epoch - 1, epoch), parts, strict=True):
            factor = 2.0 ** ((self._begin(begun) - now) / self._half_life_ms)
            for item, number in part:
                recent[item] = recent.get(item, 0.0) + number * factor
        ordered = sorted(recent.items(), key=lambda pair: -pair[1])
        self.counts = Counts(ever, ordered[: self._copied], now)
        self._tell()

    @property
    def enough(self) -> bool:
        """Whether there are recent interactions enough to go by."""
        return self.counts.decayed >= self._least

    def _tell(self) -> None:
        for retrieval, row_of in self._shown:
            rows = ((row_of(item), number) for item, number in self.counts.recent)
            last = retrieval.view.size
            known = [(row, number) for row, number in rows if row is not None and row <= last]
            retrieval.show_recent(known if self.enough else [])

    def _epoch(self, time_ms: int) -> int:
        return time_ms // (EPOCH * self._half_life_ms)

    def _begin(self, epoch: int) -> int:
        return epoch * EPOCH * self._half_life_ms

    # -- life ----------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flushes and refreshes meanwhile, and flushes at the end."""
        failing, failed = "popularity is not kept", metrics.POPULARITY_FAILURES.inc
        try:
            async with (
                Follower(self.flush, FLUSH_EVERY_S, failing, failed),
                Follower(self.refresh, self._refresh_s, failing, failed),
            ):
                yield
        finally:
            try:
                await self.flush(settled=True)
            except StoreError as error:
                logger.warning("the last interactions are not counted as popularity: %s", error)

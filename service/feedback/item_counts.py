"""How often items of which little is known were shown, and how often users took to them.

Layout of the keys (`<ns>` a namespace), each a hash from item id to a number:

    <ns>:explored:shown:<period>   times that it was recommended in the period
    <ns>:explored:taken:<period>   outcomes of these in the period

The numbers are those of this period and the one before; older ones expire, and then an item is as
little known as before. They know no users, and an erasure leaves them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from service.catalogue.exploration import WELL_SHOWN, Exploration
from service.observe import metrics
from service.store.client import Store
from service.store.errors import raised
from service.store.follower import Follower
from service.store.script import Command

PERIOD_MS = 14 * 86_400_000
MOST_ITEMS = 20_000
"""So many are counted in a period; of those beyond nothing becomes known."""
_PAGE = 1000


class _Followed(NamedTuple):
    exploration: Exploration
    row: Callable[[str], int | None]


def _now_ms() -> int:
    return round(time.time() * 1000)


class ItemCounts:
    """Counts what this process shows, together with all others, and keeps a copy of the sums.

    Counts wait in memory until `flush`, and are sent once: what the store does not take is lost.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        refresh_s: float = 5.0,
        clock_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self._store, self._prefix = store, f"{namespace}:explored"
        self._refresh_s, self._clock_ms = refresh_s, clock_ms
        self._waiting = Counter[tuple[str, str]]()  # by shown or taken, and item
        self._shown, self._taken = Counter[str](), Counter[str]()
        self._followed: list[_Followed] = []

    # -- counting ------------------------------------------------------------------------

    def shown(self, items: Iterable[str]) -> None:
        """A user was given these."""
        full = len(self._shown) >= MOST_ITEMS
        for item in items:
            if not full or item in self._shown:
                self._waiting["shown", item] += 1

    def taken(self, item: str) -> None:
        """A user has taken something that was shown: it counts if that was counted."""
        if ("shown", item) in self._waiting or 0 < self._shown[item] < WELL_SHOWN:
            self._waiting["taken", item] += 1

    def of(self, item: str) -> tuple[int, int]:
        """How often it was shown and taken, in this period and the one before."""
        return self._shown[item], self._taken[item]

    async def flush(self) -> None:
        """Sends what waits, in one pipeline.

        Raises:
            StoreError: what was sent is lost, all or in part.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, Counter()
        period = self._period
        commands: list[Command] = [
            ("HINCRBY", self._key(what, period), item, number)
            for (what, item), number in waiting.items()
        ]
        commands += [
            ("PEXPIREAT", self._key(what, period), (period + 2) * PERIOD_MS)
            for what in sorted({what for what, _ in waiting})
        ]
        raised(*await self._store.once(commands))

    # -- the copy ------------------------------------------------------------------------

    def show(self, exploration: Exploration, row: Callable[[str], int | None]) -> None:
        """From now on `exploration` knows the numbers; `row`: an item's."""
        self._followed.append(_Followed(exploration, row))
        self._tell()

    def forget(self, exploration: Exploration) -> None:
        """Ends `show`."""
        self._followed = [one for one in self._followed if one.exploration is not exploration]

    async def refresh(self) -> None:
        """Reads the sums anew.

        Raises:
            StoreError: the copy stays as it was.
        """
        periods = self._period - 1, self._period
        shown, taken = [
            sum([await self._read(self._key(what, period)) for period in periods], Counter[str]())
            for what in ("shown", "taken")
        ]
        self._shown, self._taken = shown, taken
        self._tell()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Refreshes meanwhile."""
        failing = "counts of items that are little known are not read"
        async with Follower(self.refresh, self._refresh_s, failing, metrics.OUTCOME_FAILURES.inc):
            yield

    async def _read(self, key: str) -> Counter[str]:
        found, cursor = dict[str, int](), b"0"
        while True:
            answers = await self._store.pipeline([("HSCAN", key, cursor, "COUNT", _PAGE)])
            raised(*answers)
            ((cursor, flat),) = answers
            found |= {
                item.decode(): int(number)
                for item, number in zip(flat[::2], flat[1::2], strict=True)
            }
            if cursor == b"0":
                return Counter(found)

    def _tell(self) -> None:
        for exploration, row_of in self._followed:
            rows = ((row_of(item), item) for item in self._shown)
            exploration.know(
                [(row, self._shown[item], self._taken[item]) for row, item in rows if row]
            )

    @property
    def _period(self) -> int:
        return self._clock_ms() // PERIOD_MS

    def _key(self, what: str, period: int) -> str:
        return f"{self._prefix}:{what}:{period}"

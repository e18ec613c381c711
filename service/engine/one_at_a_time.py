"""Work beside the batches, in turn: no batch waits for more than one piece of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.engine.pace import Pace
from service.engine.requests import Overloaded
from service.observe import metrics

T = TypeVar("T")


class OneAtATime:
    """Args:
    max_wait_s: who would wait longer, as things go, is refused.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._turn, self._waiting, self._pace = asyncio.Lock(), 0, Pace(1)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the work comes to.

        Raises:
            Overloaded: it was not begun.
        """
        if self._waiting * self._pace.seconds_each > self._max_wait_s:
            metrics.REFUSED["overloaded"].inc()
            raise Overloaded("more requests than can be answered in time")
        self._waiting += 1
        try:
            async with self._turn:
                began = time.perf_counter()
                found = await work()
                self._pace.add(1, time.perf_counter() - began)
                return found
        finally:
            self._waiting -= 1

"""How long the event loop is held."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from service.server import OBJECTS_EACH

HELD_S = 0.05
"""The longest that the loop may be held."""


@dataclass
class Held:
    """The longest turn of the event loop and all of them together, in CPU seconds of its thread: a
    busy machine counts for nothing."""

    longest: float = 0.0
    total: float = 0.0

    async def _watch(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            held = time.thread_time() - began
            self.longest, self.total = max(self.longest, held), self.total + held


@asynccontextmanager
async def watched() -> AsyncIterator[Held]:
    """The event loop within it."""
    found = Held()
    watching = asyncio.create_task(found._watch())
    await asyncio.sleep(0)
    try:
        yield found
        await asyncio.sleep(0)
    finally:
        watching.cancel()


@contextmanager
def without_garbage() -> Iterator[None]:
    """As in a service: for what was there at the start nobody looks, and for the rest seldom."""
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_EACH * 4096, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

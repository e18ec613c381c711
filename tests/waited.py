"""Time bounds that hold on a busy machine, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICK_S = 0.005
PATIENT_S = 30.0
LONG_S = 60.0
"""For what takes a moment: only a hang takes longer, however busy the machine is."""


class Waited:
    """`seconds` in which the event loop had nothing to do but wait. What this thread computed, and
    what it waited for a processor, is left out, but for a tick each time."""

    seconds = 0.0

    async def _tick(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.seconds += min(time.monotonic() - began, 2 * TICK_S)


@asynccontextmanager
async def waited() -> AsyncIterator[Waited]:
    """What is waited within it."""
    found = Waited()
    ticking = asyncio.create_task(found._tick())
    try:
        yield found
    finally:
        ticking.cancel()


def until(holds: Callable[[], object], what: str = "", within_s: float = LONG_S) -> None:
    """Returns as soon as it holds; fails with `what` where it does not in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def at_last(check: Callable[[], None], within_s: float = LONG_S) -> None:
    """Repeats a check that fails, until it passes or the time is over."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)

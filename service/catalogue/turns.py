"""Long work on the event loop, in short turns, between which everybody else is answered.

Such work is a generator that yields wherever it may be interrupted, a millisecond or so apart. What
is short is over within its first turn and waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Hashable
from time import perf_counter
from typing import Any, Generic, TypeVar

T = TypeVar("T")

TURN_S = 0.001
MOST_WAITING = 32
"""More requests than this are not taken turns with: each holds memory."""

Steps = Generator[None, None, T]


class TooManyWait(Exception):
    """So much work is under way already that no more is begun."""


def at_once(steps: Steps[T]) -> T:
    """The work's result, without a pause."""
    while True:
        if (ended := _turn(steps)) is not None:
            return ended.value  # type: ignore[no-any-return]


async def in_turns(steps: Steps[T]) -> T:
    """The work's result; for what the process does by itself."""
    while (ended := _turn(steps)) is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return ended.value  # type: ignore[no-any-return]


class Shared(Generic[T]):
    """Work whose result several need: whoever waits for it takes it further, so that nobody has to
    stay to its end."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps: Steps[T] | None = steps
        self._result: T

    def result(self) -> Steps[T]:
        while self._steps is not None:
            try:
                next(self._steps)
            except StopIteration as end:
                self._result, self._steps = end.value, None
            else:
                yield
        return self._result


class Turns:
    """The work of requests: all of it together has one turn at a time, in order."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most, self._lock = most, asyncio.Lock()
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(
        self, what: Hashable, begin: Callable[[], Steps[T]], *, may_be_short: bool = True
    ) -> T:
        """The work's result. Who asks for the same while it is under way gets that one.

        Args:
            may_be_short: it may have a turn at once, though others are waiting for theirs; such
                work has half of the places for itself.

        Raises:
            TooManyWait
        """
        task = self._under_way.get(what)
        if task is None:
            steps = begin()
            if (may_be_short or not self._under_way) and (ended := _turn(steps)) is not None:
                return ended.value  # type: ignore[no-any-return]
            if len(self._under_way) >= (self._most if may_be_short else self._most // 2):
                raise TooManyWait
            task = asyncio.create_task(self._ended(what, steps))
            task.add_done_callback(_heard)
            self._under_way[what] = task
        found: T = await asyncio.shield(task)  # others may wait for it, too
        return found

    def close(self) -> None:
        """Ends what is under way."""
        for task in self._under_way.values():
            task.cancel()

    async def _ended(self, what: Hashable, steps: Steps[T]) -> T:
        try:
            while True:
                async with self._lock:
                    await asyncio.sleep(0)
                    if (ended := _turn(steps)) is not None:
                        return ended.value  # type: ignore[no-any-return]
        finally:
            del self._under_way[what]


def _heard(task: asyncio.Task[Any]) -> None:
    """Who asked may have gone: then nobody else hears of an error."""
    if not task.cancelled():
        task.exception()


def _turn(steps: Steps[Any]) -> StopIteration | None:
    """Goes on for a turn; how the work ended, if it did."""
    until = perf_counter() + TURN_S
    try:
        while True:
            next(steps)
            if perf_counter() >= until:
                return None
    except StopIteration as end:
        return end

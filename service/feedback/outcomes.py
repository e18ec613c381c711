"""What models have shown, and what became of it: whether the user took to an item soon after.

    <ns>:shown:<user>   list   what was shown to the user of late, newest first; lives for a window

What is shown and done waits in memory and goes to the store together, off the way of any request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote
from zlib import crc32

from service.observe import metrics
from service.store.calls import Calls, raised
from service.store.store import Command, Store, StoreError

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.25
LISTS = 16
"""Lists of a user that are kept."""
ITEMS = 100
"""Items of a list that count as shown."""
WAITING = 20_000
"""More than this is not counted."""
_AT_ONCE = 1000
_BARRED_S = 10.0
"""So long nothing is kept of an erased user: a request that had begun before may still end."""

_SCRIPTS = {
    hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(): source
    for source in (
        files("service.feedback").joinpath(f"{name}.lua").read_text("utf-8")
        for name in ("shown", "outcome")
    )
}
_SHOWN, _OUTCOME = _SCRIPTS


@dataclass(frozen=True)
class _Waiting:
    """`kind`: of an interaction; None: it is none."""

    user_id: str
    command: Command
    kind: str | None = None


class Outcomes:
    """Counts by model what was shown, and the interactions that followed within a window.

    An item counts once for all the times that it was shown within the window, and for the model
    that showed it last. What the store does not take is lost, and nothing is counted twice.

    Args:
        window_s: how soon after.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str = "tim4rec",
        window_s: int = 3600,
        timeout_s: float = 2.0,
    ) -> None:
        self._prefix = f"{quote(namespace, safe='')}:shown:"
        self._window_ms = 1000 * window_s
        self._calls = Calls(store, timeout_s, _SCRIPTS)
        self._waiting: deque[_Waiting] = deque()
        self._barred: dict[str, float] = {}

    def shown(self, user_id: str, model: str, items: Iterable[str]) -> None:
        """A user was given these items by a model."""
        hashes = [_hash(item) for item in items][:ITEMS]
        if not hashes or self._is_barred(user_id):
            return
        metrics.of_model(model).shown.inc(len(hashes))
        last = self._window_ms, LISTS
        self._add(
            user_id,
            ("EVALSHA", _SHOWN, 1, self._key(user_id), model, b"".join(hashes), *last),
        )

    def interacted(self, user_id: str, item_id: str, kind: str) -> None:
        """An interaction was logged. `kind`: as its metric's label says."""
        key = self._key(user_id)
        self._add(user_id, ("EVALSHA", _OUTCOME, 1, key, _hash(item_id), self._window_ms), kind)

    def forget(self, user_id: str) -> None:
        """The user was erased, here or elsewhere."""
        now = time.monotonic()
        self._barred = {user: until for user, until in self._barred.items() if until > now}
        self._barred[user_id] = now + _BARRED_S
        self._waiting = deque(one for one in self._waiting if one.user_id != user_id)
        self._add(user_id, ("UNLINK", self._key(user_id)))

    async def flush(self) -> None:
        """Sends what waits.

        Raises:
            StoreError: a part of it is lost.
        """
        while self._waiting:
            part = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            answers = await self._calls([one.command for one in part])
            for one, answer in zip(part, answers, strict=True):
                if one.kind is not None and isinstance(answer, bytes):
                    metrics.outcomes(answer.decode(), one.kind).inc()
            raised(*answers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flushes meanwhile, and at the end."""
        task = asyncio.create_task(self._keep_flushing())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            try:
                await self.flush()
            except StoreError as error:
                logger.warning("the last outcomes are not counted: %s", error)

    async def _keep_flushing(self) -> None:
        working = True
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
                working = True
            except StoreError as error:
                metrics.OUTCOME_FAILURES.inc()
                if working:  # said once, not four times a second
                    logger.warning("outcomes are not counted: %s", error)
                working = False
            except Exception:
                metrics.OUTCOME_FAILURES.inc()
                logger.exception("outcomes are not counted")

    def _add(self, user_id: str, command: Command, kind: str | None = None) -> None:
        if len(self._waiting) >= WAITING:
            metrics.OUTCOME_FAILURES.inc()
            return
        self._waiting.append(_Waiting(user_id, command, kind))

    def _is_barred(self, user_id: str) -> bool:
        return bool(self._barred) and self._barred.get(user_id, 0.0) > time.monotonic()

    def _key(self, user_id: str) -> str:
        return self._prefix + quote(user_id, safe="")


def _hash(item_id: str) -> bytes:
    return crc32(item_id.encode()).to_bytes(4, "big")

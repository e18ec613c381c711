"""What a process does again and again beside its requests: read what changed, send what waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Self

from service.store.errors import StoreError, severity

logger = logging.getLogger(__name__)


class Follower:
    """Acts at once and then every so often, while its context is open. No failure ends it.

    Args:
        act: may raise StoreError, which is logged once until it works again; any other error is a
            fault of ours and is logged each time.
        failing: what does not happen then, as a sentence: "erasures are not read".
        failed: called at each failure.
    """

    def __init__(
        self,
        act: Callable[[], Awaitable[object]],
        every_s: float,
        failing: str,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        self._act, self._every_s = act, every_s
        self._failing, self._failed = failing, failed

    async def run(self) -> None:
        """Acts until it is cancelled."""
        working = True
        while True:
            try:
                await self._act()
                working = True
            except StoreError as error:
                self._failed()
                if working:
                    logger.log(severity(error), "%s: %s", self._failing, error)
                working = False
            except Exception:
                self._failed()
                logger.exception("%s", self._failing)
            await asyncio.sleep(self._every_s)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        del self._task  # cancelled, it would keep all of this alive

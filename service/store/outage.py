"""One line when a server of the store is lost, and one when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from service.store.node import Node

logger = logging.getLogger(__name__)


class Outage:
    """What callers notice of servers that do not answer for a while.

    Attributes:
        refused: requests that were given up for want of an answer, since all last answered.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._lost: dict[Node, float] = {}

    def look(self, primaries: Collection[Node]) -> None:
        """Tells who is lost since the last time, and who is back or has been replaced."""
        for node in primaries:
            if node.down and node not in self._lost:
                self._lost[node] = node.failing_since or time.monotonic()
                logger.warning("store lost: %s: %s", node.name, node.fault)
        for node, since in list(self._lost.items()):
            if node.failing_since is None or node not in primaries:
                del self._lost[node]
                logger.warning(
                    "store back after %.1f s, %d requests refused: %s",
                    time.monotonic() - since,
                    self.refused,
                    node.name,
                )
        if not any(node.failing_since for node in primaries):
            self.refused = 0

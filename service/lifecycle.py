"""How a process starts and ends: what its server and its application both know."""

from __future__ import annotations

import time
from dataclasses import dataclass

LEAST_S = 1.0
STARTUP_FAILURE = 3
"""The exit status by which servers tell that starting again would not help."""


@dataclass
class Drain:
    """begun: no longer ready, whatever is still served. over_by: seconds of `time.monotonic` at
    which the process is to have ended; None: not known yet."""

    begun: bool = False
    over_by: float | None = None

    def left_s(self, at_most: float) -> float:
        """Time for what is under way, if `at_most` is all that it may take."""
        if self.over_by is None:
            return at_most
        return min(at_most, max(LEAST_S, self.over_by - time.monotonic()))

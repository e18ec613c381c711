"""How long one request takes of an engine that is busy with many."""

from __future__ import annotations

KEPT = 0.9
"""What of the past is left after each batch."""


class Pace:
    """A decaying mean over the latest batches, weighted by their requests.

    Args:
        enough: nothing is said before so many requests.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._requests = self._seconds = 0.0

    def add(self, requests: int, seconds: float) -> None:
        """A batch, and the time until the next one could begin."""
        self._requests = KEPT * self._requests + requests
        self._seconds = KEPT * self._seconds + seconds

    @property
    def seconds_each(self) -> float:
        if self._requests < self._enough:
            return 0.0
        return self._seconds / self._requests

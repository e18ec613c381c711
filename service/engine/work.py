"""What a pass of the arithmetic over a batch leaves to be done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.engine.history import Fetched
from service.engine.quality import Judged
from service.engine.requests import Read, Recommendation
from service.observe.stages import Span


@dataclass
class Work:
    """What one pass did: answers, snapshots to write, users whose history is needed.

    `spans` follow each other without a gap from `started` on.
    """

    answers: list[tuple[Read, Recommendation]] = field(default_factory=list)
    snapshots: list[tuple[str, bytes]] = field(default_factory=list)
    unresolved: list[Fetched] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    spans: list[Span] = field(default_factory=list)
    from_snapshot: int = 0
    from_log: int = 0
    stepped: int = 0
    prefilled: int = 0
    unfit: int = 0
    unsound: int = 0
    judged: list[Judged] = field(default_factory=list)
    unjudged: int = 0

    def end(self, stage: str) -> None:
        """What was done since the last span was `stage`."""
        start = self.spans[-1][2] if self.spans else self.started
        self.spans.append((stage, start, time.perf_counter()))

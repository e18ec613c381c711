"""Where the time of one request goes, stage by stage."""

from __future__ import annotations

from contextvars import ContextVar
from operator import itemgetter

QUEUE, LOG, STEP, PREFILL, SNAPSHOT, RETRIEVE, EXPLAIN, HTTP = (
    "queue",
    "log",
    "step",
    "prefill",
    "snapshot",
    "retrieve",
    "explain",
    "http",
)

_start = itemgetter(1)

Span = tuple[str, float, float]
"""Stage, start and end, in seconds of `time.perf_counter`."""


class Stages:
    """One request's time line; the spans of a request about many users may overlap."""

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, stage: str, start: float, end: float) -> None:
        self.spans.append((stage, start, end))

    def seconds(self) -> dict[str, float]:
        """Time by stage, each moment once: where spans overlap, the one that began first has it,
        and waiting in the queue has only what no other stage has."""
        total: dict[str, float] = {}
        past = float("-inf")
        for stage, start, end in self.spans:
            if start < past:
                return self._untangled()
            total[stage] = total.get(stage, 0.0) + end - start
            past = end
        return total

    def _untangled(self) -> dict[str, float]:
        total: dict[str, float] = {}
        covered = worked = 0.0
        covered_to = worked_to = float("-inf")
        for stage, start, end in sorted(self.spans, key=_start):
            if end > covered_to:
                covered += end - max(start, covered_to)
                covered_to = end
            if stage == QUEUE:
                total.setdefault(QUEUE, 0.0)
            elif end > worked_to:
                part = end - max(start, worked_to)
                total[stage] = total.get(stage, 0.0) + part
                worked += part
                worked_to = end
        if QUEUE in total:
            total[QUEUE] = max(0.0, covered - worked)
        return total

    def parts(self, whole: float) -> dict[str, float]:
        """All of a request's `whole` seconds: `seconds()`, and as HTTP what is in none of them."""
        total = self.seconds()
        total[HTTP] = max(0.0, whole - sum(total.values()))
        return total


current: ContextVar[Stages | None] = ContextVar("stages", default=None)
"""The stages of the request that this task answers; None outside of one."""

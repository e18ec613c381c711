"""Where the time of one request goes, stage by stage."""

from __future__ import annotations

from contextvars import ContextVar

QUEUE, LOG, STEP, PREFILL, SNAPSHOT, RETRIEVE, HTTP = (
    "queue",
    "log",
    "step",
    "prefill",
    "snapshot",
    "retrieve",
    "http",
)


class Stages:
    """One request's time line.

    spans: (stage, start, end), in seconds of `time.perf_counter`. Those of a request about many
    users may overlap.
    """

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []

    def add(self, stage: str, start: float, end: float) -> None:
        self.spans.append((stage, start, end))

    def seconds(self) -> dict[str, float]:
        """Time by stage; where spans overlap, the one that began first has it."""
        total: dict[str, float] = {}
        past = float("-inf")
        for stage, start, end in sorted(self.spans, key=lambda span: span[1]):
            if end > past:
                total[stage] = total.get(stage, 0.0) + end - max(start, past)
                past = end
        return total


current: ContextVar[Stages | None] = ContextVar("stages", default=None)
"""The stages of the request that this task answers; None outside of one."""

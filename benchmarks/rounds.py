"""CPU time of work that is compared, in turn in short rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def cpu_seconds(
    jobs: Mapping[K, tuple[Callable[[], object], int]], rounds: int
) -> dict[K, list[float]]:
    """What one call of each job took in each round, in this thread.

    In turn, so that the machine's speed drifts alike for all. Other programs disturb the thread's
    time less than the clock.

    Args:
        jobs: with how often a round calls each.
        rounds: after one to warm up.
    """
    seconds: dict[K, list[float]] = {job: [] for job in jobs}
    for turn in range(rounds + 1):
        for job, (work, calls) in jobs.items():
            started = time.thread_time()
            for _ in range(calls):
                work()
            if turn:
                seconds[job].append((time.thread_time() - started) / calls)
    return seconds


def median_ratio(these: list[float], those: list[float]) -> float:
    """The median over rounds of one job's time over another's."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))

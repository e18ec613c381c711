"""Work takes turns, and what warms it up is not counted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks.rounds import cpu_seconds, median_ratio  # noqa: E402


def test_what_is_compared_takes_turns() -> None:
    called: list[str] = []

    def busy() -> None:
        called.append("busy")
        until = time.thread_time() + (0.1 if len(called) == 1 else 0.01)
        while time.thread_time() < until:
            pass

    seconds = cpu_seconds({"busy": (busy, 1), "idle": (lambda: called.append("idle"), 3)}, 2)
    assert called == ["busy", "idle", "idle", "idle"] * 3
    assert list(map(len, seconds.values())) == [2, 2]
    assert all(0.01 <= each < 0.1 for each in seconds["busy"])  # not the first
    assert max(seconds["idle"]) < 0.01  # of this thread, in which nothing else runs


def test_the_ratio_is_of_each_round() -> None:
    assert median_ratio([1.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 2.0

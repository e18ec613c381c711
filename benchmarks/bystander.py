"""What a machine keeps from its processes, seen by one on each core that needs next to nothing.

A virtual core may stand still, be shared with other work, or run at half its speed while the host
uses the other half of it: that last one neither the kernel's steal time nor a late timer tells. So
a bystander counts how late it wakes, how much CPU time a fixed piece of work takes it, and how long
the kernel let the watched processes wait for a core.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EVERY_S = 0.02
_ROUNDS = 4000
"""Of an empty loop: about a tenth of a millisecond."""


@dataclass(frozen=True)
class Seen:
    """A row for every `EVERY_S`.

    at: its end, time.perf_counter. seconds: since the one before. late: of those, not given to a
    bystander that was due, s. waited: of those, in which watched processes stood in line, s.
    slowness: the fixed piece of work's CPU time over the least there was, mean over the cores.
    """

    at: NDArray[np.float64]
    seconds: NDArray[np.float64]
    late: NDArray[np.float64]
    waited: NDArray[np.float64]
    slowness: NDArray[np.float64]

    @property
    def lost(self) -> NDArray[np.float64]:
        """Of each row's seconds, those without which a full-speed machine of one's own would have
        done the same."""
        slow = self.seconds * (1 - 1 / self.slowness)
        return np.minimum(self.seconds, self.late + self.waited + slow)

    def between(self, begin: float, end: float) -> Seen:
        """The rows of a time, time.perf_counter."""
        inside = (self.at >= begin) & (self.at <= end)
        return Seen(*(column[inside] for column in vars(self).values()))

    def share_lost(self) -> float:
        """Of all the time."""
        return float(self.lost.sum() / self.seconds.sum()) if len(self.at) else 0.0

    def backlog_s(self, busy: float) -> NDArray[np.float64]:
        """By row, how late everything is on this machine at the best, s: what came in, at `busy`
        seconds of work a second, less what there was time for."""
        left, found = 0.0, []
        for change in busy * self.seconds - (self.seconds - self.lost):
            left = max(0.0, left + float(change))
            found.append(left)
        return np.array(found)


class Bystander(AbstractContextManager["Bystander"]):
    """Looks on while the block runs.

    Args:
        watched: process ids of those that a request passes through, its caller included.
    """

    def __init__(self, *watched: int) -> None:
        self._watched = watched
        self._processes: list[subprocess.Popen[str]] = []
        self._seen: Seen | None = None

    def __enter__(self) -> Bystander:
        for place, core in enumerate(sorted(os.sched_getaffinity(0))):
            watched = self._watched if place == 0 else ()
            command = [sys.executable, __file__, str(core), *map(str, watched)]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for each in self._processes:
            assert each.stdout is not None
            each.stdout.readline()  # it is looking on
        return self

    def __exit__(self, *exc_info: object) -> None:
        by_core = [json.loads(each.communicate()[0]) for each in self._processes]
        self._seen = _joined(by_core)

    @property
    def seen(self) -> Seen:
        """Once the block is left."""
        assert self._seen is not None
        return self._seen


def _joined(by_core: Sequence[Sequence[Sequence[float]]]) -> Seen:
    """Those of the first core, and of each other one what it saw at about the same time."""
    cores = [np.array(rows) for rows in by_core]
    at, seconds, late, _, waited = cores[0].T
    slowness = []
    for core in cores:
        work = np.interp(at, core[:, 0], core[:, 3])
        slowness.append(np.maximum(1.0, work / np.percentile(core[:, 3], 2)))
    return Seen(at, seconds, late, waited, np.mean(slowness, axis=0))


def _look_on(core: int, watched: Sequence[int]) -> list[tuple[float, float, float, float, float]]:
    """Until the standard input ends: end, seconds, lateness, work and waiting of each row."""
    os.sched_setaffinity(0, {core})
    print(flush=True)
    rows, before, waited = [], time.perf_counter(), _waited(watched)
    slept = before
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        woken = time.perf_counter()
        _work()  # the first one after a sleep finds its caches cold
        work, so_far = _work(), _waited(watched)
        late = max(0.0, woken - slept - EVERY_S)
        rows.append((woken, woken - before, late, work, so_far - waited))
        before, waited, slept = woken, so_far, time.perf_counter()
    return rows


def _work() -> float:
    began = time.thread_time()
    for _ in range(_ROUNDS):
        pass
    return time.thread_time() - began


def _waited(processes: Sequence[int]) -> float:
    """How long their main threads have stood in line for a core so far, s."""
    total = 0
    for process in processes:
        try:
            total += int(Path(f"/proc/{process}/schedstat").read_text().split()[1])
        except OSError:  # it has ended
            continue
    return total / 1e9


def main() -> None:
    core, *watched = map(int, sys.argv[1:])
    json.dump(_look_on(core, watched), sys.stdout)


if __name__ == "__main__":
    main()

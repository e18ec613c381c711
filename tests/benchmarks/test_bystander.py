"""What a machine keeps is told from what a service keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.bystander import Bystander, Seen
from benchmarks.http_load import Outcome
from benchmarks.stalls import fifths, unsteady

ROWS = 1000
EACH_S = 0.1
BUSY = 0.7


def machine(slowness: NDArray[np.float64] | None = None, waited: float = 0.0) -> Seen:
    at = EACH_S * np.arange(1, ROWS + 1)
    none = np.zeros(ROWS)
    slow = np.ones(ROWS) if slowness is None else slowness
    return Seen(at, np.full(ROWS, EACH_S), none, none + waited, slow)


def load(*stalls: tuple[int, float]) -> Outcome:
    """10 ms each, but for some hundred requests of a hundred thousand from a place on."""
    latencies = np.full(100_000, 0.01)
    for place, seconds in stalls:
        latencies[place : place + 400] = seconds
    return Outcome(100.0, list(latencies))


def test_on_a_machine_of_ones_own_nothing_is_late() -> None:
    assert not machine().backlog_s(BUSY).any()
    assert machine().share_lost() == 0


def test_what_a_slow_second_costs() -> None:
    slow = np.ones(ROWS)
    slow[100:110] = 2.0  # a second in which half the work is done
    backlog = machine(slow).backlog_s(BUSY)
    assert backlog.max() == pytest.approx(1 * (BUSY - 0.5))
    assert backlog[:100].max() == 0
    late = np.flatnonzero(backlog > 1e-9)
    assert len(late) * EACH_S == pytest.approx(1 + 0.2 / 0.3, abs=0.2)


def test_a_stall_of_the_service_is_one() -> None:
    steady = fifths(load(), machine(), BUSY)
    assert not unsteady(steady)
    stalled = unsteady(fifths(load((30_000, 0.5)), machine(), BUSY))
    assert [part.p99_ms for part in stalled] == [500]


def test_one_of_the_machine_is_not() -> None:
    slow = np.ones(ROWS)
    slow[300:320] = 5.0
    assert not unsteady(fifths(load((30_000, 0.5)), machine(slow), BUSY))
    elsewhere = np.roll(slow, 400)
    assert unsteady(fifths(load((30_000, 0.5)), machine(elsewhere), BUSY))


def test_of_a_machine_that_others_use_nothing_is_said() -> None:
    assert not unsteady(fifths(load((30_000, 0.5)), machine(waited=EACH_S / 2), BUSY))


@pytest.mark.slow
def test_who_stands_in_line_is_seen() -> None:
    """Two that both want one core all the time."""
    core = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    both = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2)]
    try:
        time.sleep(0.5)
        with Bystander(both[0].pid) as bystander:
            time.sleep(2)
    finally:
        for each in both:
            each.kill()
            each.wait()
    seen = bystander.seen
    assert seen.seconds.sum() > 1
    assert seen.waited.sum() > 0.2 * seen.seconds.sum()

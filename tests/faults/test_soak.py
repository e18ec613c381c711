"""Hours in small: a load of 70 % of the capacity, after which nothing has grown, and in which
nothing of ours stands still."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import psutil
import pytest

from benchmarks.bystander import Bystander
from benchmarks.http_load import closed_loop, open_loop
from benchmarks.stalls import busy_share, fifths, unsteady
from tests.faults.report import Report
from tests.faults.test_overload import own_store, requests, service
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service

__all__ = ["own_store", "service"]

SOAK_S = float(os.environ.get("SOAK_S", "600"))
SHARE = 0.7


def idle_files(process: psutil.Process) -> int:
    """Once the callers' connections are gone."""
    time.sleep(2)
    return int(process.num_fds())


@pytest.mark.timeout(SOAK_S + 200)
def test_nothing_grows_or_stands_still(
    service: Service, own_store: ValkeyServer, report: Report
) -> None:
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    with own_store.client() as client:
        passed = process.pid, client.info("server")["process_id"], os.getpid()
    closed_loop(service.port, requests(0), 64, 4)  # every user is in the pool
    with Bystander(*passed) as before:
        full = closed_loop(service.port, requests(1), 64, 6)
    capacity = full.rate
    files = idle_files(process)
    samples: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SOAK_S / 100):
            samples.append((time.monotonic(), process.memory_info().rss))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with Bystander(*passed) as meanwhile:
            soaked = open_loop(service.port, requests(2), SHARE * capacity, SOAK_S)
    finally:
        ended.set()
        watching.join()
    # The first third is a warm-up: allocators take their time.
    late = [sample for sample in samples if sample[0] > samples[0][0] + SOAK_S / 3]
    seconds, memory = np.array(late).T
    slope = float(np.polyfit(seconds, memory, 1)[0])
    busy = busy_share(SHARE * capacity, full, before.seen)
    parts = fifths(soaked, meanwhile.seen, busy)
    report(
        load_average=os.getloadavg()[0],
        seconds=soaked.seconds,
        rate_per_s=SHARE * capacity,
        requests=len(soaked.latencies),
        failed=dict(soaked.failures),
        memory_mb=memory[-1] / 1e6,
        memory_slope_mb_per_minute=slope * 60 / 1e6,
        files_before=files,
        files_after=idle_files(process),
        p99_ms_by_fifth=[part.p99_ms for part in parts],
        p99_ms_of_the_machine=[part.machine_ms for part in parts],
        lost_to_the_machine=[part.machine_lost for part in parts],
    )
    grown = slope * (seconds[-1] - seconds[0])
    assert grown < 0.05 * memory[0] + 10e6, "memory grows"
    assert idle_files(process) <= files + 4, "descriptors are kept"
    # On a machine that other work slows down meanwhile, 70 % may become more than it can do.
    other = {status: n for status, n in soaked.failures.items() if status != 503}
    assert sum(other.values()) < 0.001 * len(soaked.latencies), other
    assert not unsteady(parts), "something stood still, and it was not the machine"

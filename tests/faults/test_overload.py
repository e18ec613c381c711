"""Three times as many requests as one process can answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.http_load import closed_loop, mixed, open_loop
from model.artefact import Artefact
from tests.faults.conftest import ITEMS
from tests.faults.report import Report
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service

USERS = 500
MEASURED_S = float(os.environ.get("OVERLOAD_S", "6"))


@pytest.fixture
def service(artefact: Artefact, folder: Path) -> Iterator[Service]:
    store = ValkeyServer(folder, "--appendonly", "yes", "--appendfsync", "everysec")
    store.start()
    service = Service(artefact.folder, folder / "output", "--redis", store.url)
    try:
        service.start()
        yield service
    finally:
        service.kill()
        store.kill()


def requests(seed: int) -> Iterator[bytes]:
    return mixed(USERS, ITEMS, seed)


def late_ms(latencies: list[float], percentile: float) -> float:
    return 1000 * float(np.percentile(latencies, percentile)) if latencies else 0.0


def test_three_times_the_capacity(service: Service, report: Report) -> None:
    closed_loop(service.port, requests(0), 64, 2)  # warm
    capacity = closed_loop(service.port, requests(1), 64, MEASURED_S).rate
    over = open_loop(service.port, requests(2), 3 * capacity, MEASURED_S)
    began = time.monotonic()
    while httpx.get(f"{service.url}/recommend?user_id=user-1&k=1").status_code != 200:
        time.sleep(0.02)
    after_s = time.monotonic() - began
    after = closed_loop(service.port, requests(3), 64, 2).rate
    goodput = len(over.latencies) / MEASURED_S
    report(
        load_average=os.getloadavg()[0],
        capacity_per_s=capacity,
        offered_per_s=3 * capacity,
        goodput_per_s=goodput,
        p50_ms=late_ms(over.latencies, 50),
        p99_ms=late_ms(over.latencies, 99),
        refused_per_s=len(over.refusals) / MEASURED_S,
        refusal_p50_ms=late_ms(over.refusals, 50),
        refusal_p99_ms=late_ms(over.refusals, 99),
        generator_share=over.generator_s / over.seconds,
        seconds=over.seconds,
        answers_after_s=after_s,
        capacity_after_per_s=after,
        failures=dict(over.failures),
    )
    assert set(over.failures) == {503}
    assert goodput > 0.5 * capacity, "refusing is what it is busy with"
    assert late_ms(over.refusals, 50) < 1000
    assert after > 0.5 * capacity
    assert after_s < 2

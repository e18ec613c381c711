"""Three times as many requests as one process can answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.http_load import closed_loop, mixed, open_loop, reads
from model.artefact import Artefact
from tests.faults.conftest import ITEMS
from tests.faults.report import Report
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service

USERS = 500
MEASURED_S = float(os.environ.get("OVERLOAD_S", "6"))
MAX_WAIT_S = 0.3
"""Less than the setting's default: the load's connections must not be what requests wait for."""


@pytest.fixture
def own_store(folder: Path) -> Iterator[ValkeyServer]:
    store = ValkeyServer(folder, "--appendonly", "yes", "--appendfsync", "everysec")
    store.start()
    yield store
    store.kill()


@pytest.fixture
def service(artefact: Artefact, folder: Path, own_store: ValkeyServer) -> Iterator[Service]:
    with running(artefact, folder, own_store) as service:
        yield service


@contextmanager
def running(
    artefact: Artefact, folder: Path, store: ValkeyServer, **settings: object
) -> Iterator[Service]:
    service = Service(artefact.folder, folder / "output", "--redis", store.url, **settings)
    try:
        service.start()
        yield service
    finally:
        service.kill()


def requests(seed: int) -> Iterator[bytes]:
    return mixed(USERS, ITEMS, seed)


def late_ms(latencies: list[float], percentile: float) -> float:
    return 1000 * float(np.percentile(latencies, percentile)) if latencies else 0.0


def cpu_s(service: Service) -> float:
    assert service.process is not None
    used = psutil.Process(service.process.pid).cpu_times()
    return float(used.user + used.system)


def test_three_times_the_capacity(
    artefact: Artefact, folder: Path, own_store: ValkeyServer, report: Report
) -> None:
    """The load's own CPU time is of the same cores: what overload costs the service is told by good
    answers per second of the service's CPU time."""
    with running(artefact, folder, own_store, max_wait_s=MAX_WAIT_S) as service:
        overload(service, report)


def overload(service: Service, report: Report) -> None:
    closed_loop(service.port, requests(0), 64, 2)  # warm
    began_cpu = cpu_s(service)
    full = closed_loop(service.port, requests(1), 64, MEASURED_S)
    full_cpu, began_cpu = cpu_s(service) - began_cpu, cpu_s(service)
    over = open_loop(service.port, requests(2), 3 * full.rate, MEASURED_S)
    over_cpu = cpu_s(service) - began_cpu
    began = time.monotonic()
    while httpx.get(f"{service.url}/recommend?user_id=user-1&k=1").status_code != 200:
        time.sleep(0.02)
    after_s = time.monotonic() - began
    after = closed_loop(service.port, requests(3), 64, 2).rate
    goodput = len(over.latencies) / over.seconds
    by_cpu = len(over.latencies) / over_cpu / (len(full.latencies) / full_cpu)
    report(
        load_average=os.getloadavg()[0],
        capacity_per_s=full.rate,
        offered_per_s=3 * full.rate,
        goodput_per_s=goodput,
        share_of_capacity=goodput / full.rate,
        share_by_cpu_time=by_cpu,
        answer_cpu_us=1e6 * full_cpu / len(full.latencies),
        p50_ms=late_ms(over.latencies, 50),
        p99_ms=late_ms(over.latencies, 99),
        refused_per_s=len(over.refusals) / over.seconds,
        refusal_p50_ms=late_ms(over.refusals, 50),
        refusal_p99_ms=late_ms(over.refusals, 99),
        generator_share=over.generator_s / over.seconds,
        seconds=over.seconds,
        answers_after_s=after_s,
        capacity_after_per_s=after,
        failures=dict(over.failures),
    )
    assert set(over.failures) == {503}
    assert by_cpu > 0.5, "refusing is what it is busy with"
    assert late_ms(over.refusals, 50) < late_ms(over.latencies, 50)
    assert after > 0.5 * full.rate
    assert after_s < 2


def test_what_a_refusal_costs(
    artefact: Artefact, folder: Path, own_store: ValkeyServer, report: Report
) -> None:
    """CPU time of the service, each over 64 connections. The store stands still meanwhile, so that
    the queue stays as it is and nothing but refusing is done."""
    settings = {"max_wait_s": 1e-6, "store_timeout_s": 60, "max_batch": 4}
    with running(artefact, folder, own_store) as service:
        closed_loop(service.port, requests(0), 64, 2)  # warm
        began_cpu = cpu_s(service)
        answered = len(closed_loop(service.port, requests(1), 64, MEASURED_S).latencies)
        answer_us = 1e6 * (cpu_s(service) - began_cpu) / answered
    with running(artefact, folder, own_store, **settings) as service:
        closed_loop(service.port, islice(reads(USERS), 50), 1, 60)  # enough for the pace
        own_store.send(signal.SIGSTOP)
        began_cpu = cpu_s(service)
        used = list[float]()
        over = threading.Timer(
            MEASURED_S, lambda: (used.append(cpu_s(service)), own_store.send(signal.SIGCONT))
        )
        over.start()
        refused = closed_loop(service.port, requests(2), 64, MEASURED_S)
        over.join()
        refusal_us = 1e6 * (used[0] - began_cpu) / len(refused.refusals)
    report(
        load_average=os.getloadavg()[0],
        answer_cpu_us=answer_us,
        refusal_cpu_us=refusal_us,
        refusals=len(refused.refusals),
        refusal_p50_ms=late_ms(refused.refusals, 50),
    )
    assert len(refused.latencies) <= 64
    assert refusal_us < 0.2 * answer_us

"""What befalls the store while two workers serve a load: nothing acknowledged is lost, nothing is
applied twice, and nothing of ours has to be started again."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.artefact import Artefact
from tests.faults.conftest import ITEMS
from tests.faults.fleet import Fleet
from tests.faults.load import Load, slowest
from tests.faults.report import Report

TIMEOUT_S = 1.0
ANSWERED_WITHIN_S = TIMEOUT_S + 1.0
"""The service's own limit, and what a busy machine adds."""


@pytest.fixture(scope="module")
def fleet(artefact: Artefact) -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    with Fleet(artefact, folder, store_timeout_s=TIMEOUT_S) as fleet:
        yield fleet
    shutil.rmtree(folder)


def under_load(
    fleet: Fleet, name: str, fault: Callable[[], None], report: Report, *, may_lose: bool = False
) -> Load:
    """A load, in the middle of which `fault` begins and ends; then what must hold."""
    workers, memory = fleet.workers, fleet.resident_bytes()
    with Load(fleet.service.port, ITEMS, name=name) as load:
        load.until(100)
        began = time.monotonic()
        fault()
        over = time.monotonic()
        load.until(100)
    assert fleet.workers == workers, "a worker was started again"
    assert load.wrong == []
    answers = load.between(began, over)
    with fleet.service.client() as client:
        lost = load.lost(client)
        report(
            lasted_s=over - began,
            recovered_s=load.recovered_s(over),
            outage_s=load.outage_s(began),
            acknowledged=load.n_acknowledged,
            lost=lost,
            slowest_answer_s=slowest(load.between(began)),
            most_in_flight=load.most_in_flight,
            load_late_s=load.lag_s,
            meanwhile=load.statuses(began, over),
            grown_mb=(fleet.resident_bytes() - memory) / 1e6,
        )
        if may_lose:
            assert load.send_again(client) == lost
        load.check(client, fleet.artefact)
    assert slowest(answers) < ANSWERED_WITHIN_S + 4 * load.lag_s
    return load


def killed(fleet: Fleet, down_s: float) -> None:
    fleet.store.kill()
    time.sleep(down_s)
    fleet.store.start()


@pytest.mark.parametrize("down_s", [0.0, 3.0])
def test_store_killed_always(fleet: Fleet, report: Report, down_s: float) -> None:
    load = under_load(fleet, f"always {down_s}", lambda: killed(fleet, down_s), report)
    assert load.recovered_s(load.answers[0].began) < 5


def test_store_killed_everysec(fleet: Fleet, report: Report) -> None:
    """What the kernel has is not lost with the process: only what the process had not written."""
    with fleet.store.client() as client:
        client.config_set("appendfsync", "everysec")
    try:
        under_load(fleet, "everysec", lambda: killed(fleet, 0.5), report, may_lose=True)
    finally:
        with fleet.store.client() as client:
            client.config_set("appendfsync", "always")


def test_store_restarted(fleet: Fleet, report: Report) -> None:
    def restart() -> None:
        fleet.store.send(signal.SIGTERM)
        fleet.store.wait()
        fleet.store.start()

    under_load(fleet, "restart", restart, report)


def test_store_frozen(fleet: Fleet, report: Report) -> None:
    def freeze() -> None:
        fleet.store.send(signal.SIGSTOP)
        time.sleep(5)
        fleet.store.send(signal.SIGCONT)

    under_load(fleet, "frozen", freeze, report)


@pytest.mark.parametrize("where", ["request", "reply"])
def test_connections_reset_within_a_wave(fleet: Fleet, report: Report, where: str) -> None:
    def reset() -> None:
        before = fleet.relay.broken
        for _ in range(10):
            fleet.relay.break_next(where, 1)
            time.sleep(0.2)
        assert fleet.relay.broken == before + 10

    load = under_load(fleet, f"reset {where}", reset, report)
    assert {answer.status for answer in load.answers} == {200}, "a reset is no reason for a 503"

"""What befalls the store while two workers serve a load: nothing acknowledged is lost, nothing is
applied twice, and nothing of ours has to be started again."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model.artefact import Artefact
from tests.faults.conftest import ITEMS
from tests.faults.fleet import AOF, Fleet
from tests.faults.load import Load, slowest
from tests.faults.report import Report
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.service.processes import history, pairs

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
    fleet: Fleet,
    name: str,
    fault: Callable[[], None],
    report: Report,
    *,
    may_lose: bool = False,
    kills: int = 0,
) -> Load:
    """A load, in the middle of which `fault` begins and ends, and `kills` workers die; then what
    must hold."""
    workers, memory = fleet.workers, fleet.resident_bytes()
    with Load(fleet.service.port, ITEMS, name=name) as load:
        load.until(100)
        began = time.monotonic()
        fault()
        over = time.monotonic()
        load.until(100)
    left = set(workers) & set(fleet.workers)
    assert len(left) == len(workers) - kills, "a worker was started again"
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


def test_worker_killed(fleet: Fleet, report: Report) -> None:
    def kill() -> None:
        before = fleet.workers
        fleet.kill_worker()
        deadline = time.monotonic() + 60
        while len(fleet.workers) < len(before) or fleet.workers == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    under_load(fleet, "worker", kill, report, kills=1)


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


def test_memory_is_full(fleet: Fleet, report: Report) -> None:
    """Interactions are refused, recommendations answered, and afterwards all is as it was."""

    def fill() -> None:
        with fleet.store.client() as client:
            client.config_set("maxmemory", 1)
            time.sleep(2)
            client.config_set("maxmemory", 0)

    load = under_load(fleet, "full", fill, report)
    reads = [answer for answer in load.answers if answer.method == "GET"]
    assert {answer.status for answer in reads} == {200}
    assert not any(answer.stale for answer in reads), "a full store answers reads"
    assert any(a.status == 503 for a in load.answers if a.method == "POST")


def test_records_from_an_old_backup(fleet: Fleet, report: Report) -> None:
    """Half of the users get the record they had a while ago, under load: what came after it is
    lost, what was built on it passes for current nowhere, and sent again it is there once."""
    taken: dict[bytes, bytes] = {}

    def restore() -> None:
        with fleet.store.client() as client:
            for key in sorted(client.keys("tim4rec:u:backup*"))[::2]:
                taken[key] = client.dump(key)
            time.sleep(2)
            for key, value in taken.items():
                client.restore(key, 0, value, replace=True)

    under_load(fleet, "backup", restore, report, may_lose=True)
    assert len(taken) > 10


def test_callers_who_leave(fleet: Fleet, report: Report) -> None:
    """Within the head, within the body, and after it: nothing of it stays, and what was whole may
    have been stored."""
    port = fleet.service.port
    event = b'{"user_id":"leaver","item_id":"i1","event_id":"%d"}'
    head = b"POST /interactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    def leave() -> None:
        for number in range(300):
            body = event % number
            whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            caller = socket.create_connection(("127.0.0.1", port))
            caller.sendall(whole[: len(whole) * (number % 4 + 1) // 4])
            if number % 2:
                reset = struct.pack("ii", 1, 0)
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            caller.close()

    files = fleet.open_files()
    load = under_load(fleet, "leavers", leave, report)
    assert {answer.status for answer in load.answers} == {200}
    deadline = time.monotonic() + 20
    while fleet.open_files() > files + 60:  # the load's own connections are kept a while
        assert time.monotonic() < deadline, "connections are kept"
        time.sleep(0.2)
    with fleet.service.client() as client:
        found = [event["event_id"] for event in history(client, "leaver")]
    assert len(set(found)) == len(found) <= 75
    assert {int(name) % 4 for name in found} <= {3}, "a part of a body was stored"


LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@pytest.mark.skipif(not Path(LIBRARY).exists(), reason="needs libfaketime: Debian's libfaketime")
def test_the_clock_steps_back(artefact: Artefact, folder: Path, report: Report) -> None:
    """By an hour, of the store's machine. Times in effect never fall, so nothing is reordered."""
    clock = folder / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with Fleet(artefact, folder, environment=faked, store_timeout_s=TIMEOUT_S) as fleet:

        def step() -> None:
            with fleet.store.client() as client:
                before = client.time()[0]
                clock.write_text("-3600")
                assert client.time()[0] < before - 3000, "the clock has not moved"
                time.sleep(1)

        load = under_load(fleet, "clock", step, report)
        assert {answer.status for answer in load.answers} == {200}
        with fleet.service.client() as client:
            for user in load.users:
                times = [ms for _, ms in pairs(history(client, user))]
                assert times == sorted(times)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_the_disk_is_full(artefact: Artefact, folder: Path, report: Report, fsync: str) -> None:
    disk = folder / "store"
    disk.mkdir()
    size = "size=6m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        options = ("--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0")
        with Fleet(artefact, folder, *options, store_timeout_s=TIMEOUT_S) as fleet:

            def fill() -> None:
                filler = disk / "filler"
                with suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
                time.sleep(3)
                filler.unlink()
                if not fleet.store.lives:
                    fleet.store.start()

            # A second of what `everysec` had not written is what a killed process may lose; this
            # one refuses as soon as a write fails.
            load = under_load(fleet, f"disk {fsync}", fill, report, may_lose=fsync != "always")
            assert any(a.status == 503 for a in load.answers if a.method == "POST")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("acks", [0, 1])
def test_failover_to_a_replica(artefact: Artefact, folder: Path, report: Report, acks: int) -> None:
    """The link to the replica goes, then the primary; its address leads to the replica, which gets
    a replica of its own: without one, nothing would be acknowledged."""
    settings = {"store_timeout_s": TIMEOUT_S, "replica_acks": acks}
    port, next_port = free_port(), free_port()
    replica, spare = (_replica(folder / name, next_port) for name in ("replica", "spare"))
    options = ("--port", str(port), "--repl-diskless-sync-delay", "0")
    with Fleet(artefact, folder, *options, **settings) as fleet:
        replica.start()
        try:
            _follow(replica, port)

            def fail_over() -> None:
                with replica.client() as client:
                    client.replicaof("NO", "ONE")  # it gets nothing from here on
                time.sleep(1)
                fleet.store.kill()
                spare.start()
                _follow(spare, next_port)
                fleet.relay.aim(replica.socket)

            load = under_load(fleet, f"acks {acks}", fail_over, report, may_lose=not acks)
            if acks:
                assert any(a.status == 503 for a in load.answers if a.method == "POST")
        finally:
            for server in (replica, spare):
                if server.lives:
                    server.kill()


def _replica(folder: Path, port: int) -> ValkeyServer:
    folder.mkdir()
    own = ("--port", str(port)) if folder.name == "replica" else ()
    return ValkeyServer(folder, *AOF, "--repl-diskless-sync-delay", "0", *own)


def _follow(replica: ValkeyServer, port: int) -> None:
    with replica.client() as client:
        client.replicaof("127.0.0.1", port)
        deadline = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.02)

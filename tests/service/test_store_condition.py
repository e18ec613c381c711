"""What the service knows of its store's memory, persistence and replicas."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service import vitals
from service.observe.registry import REGISTRY
from service.store import server_info
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.server_info import Condition
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def until(store: Store, holds: Callable[[Condition], bool]) -> Condition:
    async with asyncio.timeout(LONG_S):
        while not holds(found := await store.condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


def test_a_copy_that_fails_until_one_succeeds(run: Run, folder: Path) -> None:
    server = ValkeyServer(folder, "--enable-protected-configs", "yes")
    server.start()
    gone = folder / "gone"
    gone.mkdir()

    async def main() -> None:
        async with Store(server.url) as store:
            assert (await store.condition()).failed == frozenset()
            with server.client() as client:
                client.config_set("dir", str(gone))
                shutil.rmtree(gone)
                client.bgsave()
                await until(store, lambda found: found.failed == {"save"})
                client.config_set("dir", str(folder))
                client.bgsave()
                await until(store, lambda found: not found.failed)

    try:
        run(main())
    finally:
        server.kill()


def test_a_replica_that_falls_behind_and_goes(
    run: Run, durable_valkey: ValkeyServer, folder: Path
) -> None:
    (folder / "replica").mkdir()
    replica = ValkeyServer(folder / "replica", "--repl-diskless-sync-delay", "0")
    replica.start()
    port = free_port()

    async def main() -> None:
        async with Store(durable_valkey.url) as store:
            assert (await store.condition()).replicas == 0
            with durable_valkey.client() as client, replica.client() as following:
                client.config_set("port", port)
                following.replicaof("127.0.0.1", port)
                await until(store, lambda it: it.replicas == 1 and it.replica_lag_bytes < 100)
                # It acknowledges once a second what it has; this much is there before it does.
                client.set("long", "x" * 10**6)
                await until(store, lambda found: found.replica_lag_bytes > 10**5)
                await until(store, lambda found: found.replica_lag_bytes < 100)
                following.replicaof("NO", "ONE")
                await until(store, lambda it: it.replicas == 0 and it.replica_lag_bytes == 0)

    try:
        run(main())
    finally:
        replica.kill()


sizes = st.integers(0, 2**40)


@given(st.lists(st.tuples(sizes, sizes, st.lists(sizes, max_size=3)), min_size=1, max_size=4))
def test_all_primaries_together(nodes: list[tuple[int, int, list[int]]]) -> None:
    infos = []
    for used, limit, lags in nodes:
        info = {"used_memory": str(used), "maxmemory": str(limit), "master_repl_offset": "9" * 13}
        info["connected_slaves"] = str(len(lags))
        for place, lag in enumerate(lags):
            offset = int("9" * 13) - lag
            info[f"slave{place}"] = f"ip=::1,port=1,state=online,offset={offset},lag=0"
        infos.append(info)
    found = server_info.condition(infos)
    assert found.memory_bytes == sum(used for used, _, _ in nodes)
    assert (found.memory_limit_bytes == 0) == any(limit == 0 for _, limit, _ in nodes)
    assert found.replicas == sum(len(lags) for _, _, lags in nodes)
    assert found.replica_lag_bytes == max([0, *(lag for _, _, lags in nodes for lag in lags)])
    assert not found.failed


def test_an_embedded_store_s_disk_is_shown(
    run: Run, durable_valkey: ValkeyServer, folder: Path
) -> None:
    async def main() -> None:
        async with Store(durable_valkey.url) as store:
            async with vitals.reported(EventLog(store), "cpu", folder):
                async with asyncio.timeout(LONG_S):
                    while not shown("tim4rec_store_disk_free_bytes"):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            assert 0 < shown("tim4rec_store_disk_free_bytes") <= shown("tim4rec_store_disk_bytes")
            assert shown("tim4rec_store_persistence_failed", part="append") == 0

    run(main())


def shown(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None
    return value

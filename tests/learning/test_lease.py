from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from learning.lease import Holder, Lease, LeaseHeld, holder
from learning.work_folder import work_folder
from service.store.client import Store
from tests.service.conftest import ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]
NAMESPACE = "a b"
ONE, OTHER = Holder("a", "here:1"), Holder("b", "there:2")


def lease(store: Store, holder: Holder, lasts_s: float = 60) -> Lease:
    return Lease(store, holder, namespace=NAMESPACE, lasts_s=lasts_s)


def test_one_holds_it(valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with Store(valkey.url) as store:
            one, other = lease(store, ONE), lease(store, OTHER)
            async with one.held():
                assert await holder(store, NAMESPACE) == ONE
                with pytest.raises(LeaseHeld, match="the one at here:1"):
                    await other.hold()
                # The same learner after it was killed.
                async with lease(store, Holder("a", "here:7")).held():
                    with pytest.raises(LeaseHeld, match="here:7"):
                        await other.hold()
                await one.hold()
            async with other.held():
                assert await holder(store, NAMESPACE) == OTHER
                with pytest.raises(LeaseHeld):
                    await one.hold()
            assert await holder(store, NAMESPACE) is None

    run(check())
    with valkey.client() as client:
        assert client.keys() == []


def test_it_runs_out_unless_it_is_renewed(valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with Store(valkey.url) as store:
            one, other = lease(store, ONE, 0.3), lease(store, OTHER)
            await one.hold()
            async with asyncio.timeout(30):
                while await holder(store, NAMESPACE) is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await one.hold()  # nobody took it
            async with one.held():
                for _ in range(20):
                    await asyncio.sleep(0.05)
                    try:
                        await other.hold()
                    except LeaseHeld:
                        continue
                    raise AssertionError("it ran out while it was held")

    run(check())


def test_the_key_is_the_documented_one(valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with Store(valkey.url) as store:
            await lease(store, ONE).hold()

    run(check())
    with valkey.client() as client:
        assert client.keys() == [b"a%20b:learner"]
        assert 0 < client.pttl("a%20b:learner") <= 60_000


def test_a_work_folder_is_one_learners_and_keeps_its_token(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work") as token:
        with (
            pytest.raises(LeaseHeld, match="another learner is at work in"),
            work_folder(tmp_path / "work"),
        ):
            pass
        assert token
    with work_folder(tmp_path / "work") as again:
        assert again == token

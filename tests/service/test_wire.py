"""Connections to the store: everybody gets the replies to their own commands, whatever becomes of
the others."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from service.store.client import Store
from service.store.errors import StoreUnavailable
from tests.service.conftest import ValkeyServer
from tests.waited import LONG_S


def test_everybody_gets_their_own_replies(valkey: ValkeyServer) -> None:
    """More callers than connections, some of which leave before their replies are there, or ask
    for what takes too long; replies of all sizes."""
    draw = random.Random(0)
    found: Counter[str] = Counter()

    async def call(store: Store, number: int) -> None:
        words = [f"{number}-{n}-" + "x" * draw.choice([0, 10, 300_000]) for n in range(5)]
        commands = [("EVAL", "return ARGV[1]", 0, word) for word in words]
        if number % 10 == 0:
            slow = ("BLPOP", f"nothing {number}", 30)
            with pytest.raises(StoreUnavailable, match="no answer within"):
                await store.execute([*commands, slow], 0.2)
            found["late"] += 1
            return
        replies = await store.execute(commands, 30)
        assert replies == [word.encode() for word in words]
        found["answered"] += 1

    async def main() -> None:
        async with Store(valkey.url, connections=4) as store:
            tasks = [asyncio.create_task(call(store, number)) for number in range(100)]
            for task in draw.sample(tasks[1::2], 25):
                await asyncio.sleep(0.001)
                if not task.done():
                    task.cancel()
                    found["left"] += 1
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome

    asyncio.run(main())
    assert found["late"] == 10
    assert found["left"] > 0
    assert found.total() == 100


def test_a_connection_that_the_server_has_closed_is_not_used_again(valkey: ValkeyServer) -> None:
    async def main() -> None:
        async with Store(valkey.url) as store:
            assert await store.execute([("PING",)], 5) == [b"PONG"]
            with valkey.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.05)
            assert await store.execute([("PING",)], 5) == [b"PONG"]

    asyncio.run(main())


def test_closing_waits_for_what_is_under_way(valkey: ValkeyServer) -> None:
    async def main() -> None:
        store = Store(valkey.url)
        await store.execute([("PING",)], 5)
        leaving = asyncio.create_task(store.execute([("BLPOP", "a list", 60)], 60))
        await asyncio.sleep(0.05)
        leaving.cancel()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        with valkey.client() as client:
            client.rpush("a list", "a word")
            await asyncio.wait_for(closing, LONG_S)
            assert client.llen("a list") == 0, "it was carried out to its end"

    asyncio.run(main())

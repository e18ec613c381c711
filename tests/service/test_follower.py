"""Follower: acts again and again, outlives every failure, and says an outage once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from service.store.errors import StoreError
from service.store.follower import Follower


class Acting:
    """Fails as it is told, one error a call, and then works."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.acted, self.failures = list(errors), 0, 0
        self.through = asyncio.Event()

    async def act(self) -> None:
        self.acted += 1
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error
        else:
            self.through.set()

    def failed(self) -> None:
        self.failures += 1


def test_it_outlives_failures_and_says_each_outage_once(caplog: pytest.LogCaptureFixture) -> None:
    away = StoreError("the store is away")

    async def follow() -> Acting:
        acting = Acting(away, away, None, away, ValueError("a fault"), ValueError("a fault"))
        async with Follower(acting.act, 0.001, "nothing is read", acting.failed):
            await asyncio.wait_for(acting.through.wait(), 30)
        return acting

    with caplog.at_level(logging.WARNING):
        acting = asyncio.run(follow())
    assert acting.failures == 5
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "nothing is read: the store is away"),
        ("WARNING", "nothing is read: the store is away"),
        ("ERROR", "nothing is read"),
        ("ERROR", "nothing is read"),
    ]


def test_it_ends_with_its_context_whatever_it_is_doing() -> None:
    async def follow() -> None:
        begun = asyncio.Event()

        async def act() -> None:
            begun.set()
            await asyncio.Event().wait()

        async with Follower(act, 0.001, "nothing is read"):
            await begun.wait()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(follow())


def test_it_acts_at_once() -> None:
    async def follow() -> None:
        acting = Acting()
        async with Follower(acting.act, 3600, "nothing is read"):
            await asyncio.wait_for(acting.through.wait(), 30)
        assert acting.acted == 1

    asyncio.run(follow())

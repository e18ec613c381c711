"""A store on whose way commands and replies get lost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.store.client import Store
from service.store.errors import StoreUnavailable
from service.store.node import Node
from service.store.script import Command
from tests.waited import PATIENT_S


class LossyStore(Store):
    """Loses what it is told to: `sent` the command is carried out but its reply is lost,
    `unsent` it never arrives; something to call happens before the command arrives. When nothing
    is planned, everything works."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.plan: list[str | Callable[[], Awaitable[object]]] = []
        self.carried_out = 0

    async def execute(
        self, commands: Sequence[Command], timeout_s: float, at: Node | None = None
    ) -> list[Any]:
        fate = self.plan.pop(0) if self.plan else "answered"
        if callable(fate):
            await fate()
        if fate == "unsent":
            raise StoreUnavailable("lost on the way there")
        replies = await self._carried_out(commands, at)
        self.carried_out += 1
        if fate == "sent":
            raise StoreUnavailable("lost on the way back")
        return replies

    async def _carried_out(self, commands: Sequence[Command], at: Node | None) -> list[Any]:
        """Slow is not lost, be it only to connect."""
        deadline = time.monotonic() + PATIENT_S
        while True:
            try:
                return await super().execute(commands, PATIENT_S, at)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise

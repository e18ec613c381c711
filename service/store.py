"""The connection to the store (Redis >= 7 or Valkey)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self


class StoreError(Exception):
    """The store could not do what was asked. One line."""


class StoreUnavailable(StoreError):
    """No answer in time: whether the events were appended is unknown. Retry."""


class InvalidRequest(StoreError, ValueError):
    """The request itself cannot be stored; nothing was sent for it."""


class RecordDamaged(StoreError):
    """A user's record is not what the log wrote."""


class HistoryChanged(StoreError):
    """The mark to go on from is no longer in the user's history (erased, expired, restored)."""


class Store:
    def __init__(self, url: str, *, connections: int = 16, connect_timeout_s: float = 1.0) -> None:
        raise NotImplementedError

    async def check(self) -> None:
        """Connect once; StoreError if the server is too old, warnings on risky settings."""
        raise NotImplementedError

    async def execute(self, commands: Sequence[Sequence[Any]], timeout_s: float) -> list[Any]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

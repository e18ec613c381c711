"""The connection to the store (Redis >= 7 or Valkey)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Self

from redis.asyncio import BlockingConnectionPool, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError

logger = logging.getLogger(__name__)

Command = Sequence[str | bytes | int]


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
    """A pool of connections that sends pipelines and never sends one twice.

    `url`: redis://, rediss:// (TLS) or unix://. Connections are opened on first use, at most
    `connections` at a time; a caller beyond that waits.
    """

    def __init__(self, url: str, *, connections: int = 16, connect_timeout_s: float = 1.0) -> None:
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=None,
                # A pipeline has one deadline of its own, and is retried where its uids are known.
                socket_timeout=None,
                socket_connect_timeout=connect_timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise StoreError(f"store URL {without_password(url)}: {error}") from None
        self.url = without_password(url)
        self._running: set[asyncio.Task[list[Any]]] = set()

    async def execute(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Send commands in one write and return their replies in order.

        A command the server refused has its `ResponseError` for a reply. Raises
        `StoreUnavailable` if any reply is missing after `timeout_s`: the server may or may not
        have carried the commands out.

        A cancelled caller leaves at once; the pipeline runs on to its end, so that no later
        one finds its replies on the connection.
        """
        task = asyncio.create_task(self._execute(commands, timeout_s))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[list[Any]]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where the caller has left

    async def _execute(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    replies = await _converse(connection, commands)
                    if any(isinstance(reply, ReadOnlyError) for reply in replies):
                        # A primary no longer: the next connection may find the new one.
                        await connection.disconnect()
                    return replies
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await self._pool.release(connection)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"store {self.url}: no answer within {timeout_s:.1f} s"
            ) from error
        except (RedisError, OSError) as error:
            # The client wraps what fails while it connects.
            if isinstance(error.__cause__ or error, AuthenticationError):
                raise StoreError(
                    f"store {self.url}: {_one_line(error)}; check the URL's credentials"
                ) from error
            raise StoreUnavailable(f"store {self.url}: {_one_line(error)}") from error

    async def check(self, timeout_s: float = 5.0) -> None:
        """Ask the server what it is. Raises StoreError if it is too old; logs risky settings."""
        (reply,) = await self.execute([("INFO",)], timeout_s)
        if isinstance(reply, ResponseError):
            raise StoreError(f"store {self.url}: {_one_line(reply)}")
        info = dict(
            line.split(":", 1)
            for line in reply.decode(errors="replace").splitlines()
            if ":" in line
        )
        version = info.get("redis_version", "0")
        if "valkey_version" not in info and int(version.split(".")[0]) < 7:
            raise StoreError(
                f"store {self.url} is Redis {version}; 7 or newer, or Valkey, is needed"
            )
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            logger.warning(
                "store %s: maxmemory-policy is %s, so records can vanish under memory pressure; "
                "set it to noeviction",
                self.url,
                info["maxmemory_policy"],
            )
        if info.get("aof_enabled") == "0":
            logger.warning(
                "store %s: appendonly is off, so accepted interactions are lost when it stops; "
                "set appendonly yes",
                self.url,
            )

    async def close(self) -> None:
        """Wait for the pipelines under way, then close the connections."""
        while self._running:
            await asyncio.wait(self._running)
        await self._pool.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def _converse(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]

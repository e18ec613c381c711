"""One server of the store: a pool of connections that send pipelines, and never send one twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError

from service.store.errors import AcksMissed, StoreError, StoreUnavailable, one_line
from service.store.script import Command, ScriptCall, Word, words
from service.store.wire import Wire

_pack: Callable[[Any], bytes] = hiredis.pack_command

_DOWN_AFTER_S = 1.0
"""A server that fails for so long is no longer waited for, until it answers again."""
_ACKS_LATE_S = 0.05


class Node:
    """Connections are opened on first use; a caller beyond the most there may be waits.

    Args:
        options: of redis-py's connection.
        replica_acks: replicas that must have what a durable script wrote.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any], connections: int, replica_acks: int
    ) -> None:
        self.name, self.replica_acks = name, replica_acks
        self.failing_since: float | None = None
        self.fault = ""  # of its last failure
        self.options = dict(options)
        self._kind: type[Connection] = self.options.pop("connection_class", Connection)
        self._free = asyncio.LifoQueue[Wire | None](connections)  # None: one may be opened
        for _ in range(connections):
            self._free.put_nowait(None)
        self._acks_missed = self._retired = False

    @property
    def down(self) -> bool:
        """Whether it is not worth waiting for."""
        since = self.failing_since
        return since is not None and time.monotonic() - since >= _DOWN_AFTER_S

    async def send(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Each command's reply, which is a ResponseError where the server refused it, and
        AcksMissed where too few replicas have what it wrote.

        Raises:
            StoreUnavailable: not all replies came in time.
            StoreError: the login was refused.
        """
        started = time.monotonic()
        try:
            replies = await self._send(commands, started + timeout_s)
        except TimeoutError as error:
            raise self._failed(started, f"no answer within {timeout_s:.1f} s") from error
        except (RedisError, OSError) as error:
            # The client wraps what fails while it connects.
            if isinstance(error.__cause__ or error, AuthenticationError):
                raise StoreError(
                    f"store {self.name}: {one_line(error)}; check the URL's credentials"
                ) from error
            raise self._failed(started, one_line(error)) from error
        self.failing_since = None
        return replies

    def _failed(self, started: float, fault: str) -> StoreUnavailable:
        self.failing_since, self.fault = self.failing_since or started, fault
        return StoreUnavailable(f"store {self.name}: {fault}")

    async def _send(self, commands: Sequence[Command], until: float) -> list[Any]:
        sent = [words(command) for command in commands]
        waits = self.replica_acks and any(map(_durable, commands))
        if waits:
            sent.append(self._wait(until - time.monotonic()))
        packed = b"".join(map(_pack, sent))
        wire = await self._wire(until - time.monotonic())
        replies = await wire.ask(packed, len(sent), until - time.monotonic())
        for reply in replies:
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply  # it is not ready
        return self._unless_missed(commands, replies) if waits else replies

    def _wait(self, timeout_s: float) -> tuple[Word, ...]:
        # Who has just missed them once does not hold up every pipeline for as long again.
        wait_ms = max(1, round(1000 * (_ACKS_LATE_S if self._acks_missed else 0.8 * timeout_s)))
        return ("WAIT", self.replica_acks, wait_ms)

    def _unless_missed(self, commands: Sequence[Command], answers: list[Any]) -> list[Any]:
        """The replies to the commands; AcksMissed for those that too few replicas have."""
        *replies, acks = answers
        self._acks_missed = not isinstance(acks, int) or acks < self.replica_acks
        if self._acks_missed:
            said = one_line(acks) if isinstance(acks, Exception) else f"{acks} have it"
            missed = f"store {self.name}: {self.replica_acks} replicas are to have a write, {said}"
            for place, (command, reply) in enumerate(zip(commands, replies, strict=True)):
                if _durable(command) and not isinstance(reply, Exception):
                    replies[place] = AcksMissed(missed, reply)
        return replies

    async def _wire(self, timeout_s: float) -> Wire:
        """A connection to ask once; `_ended` gets it back."""
        if not self._free.empty():
            wire = self._free.get_nowait()
            if wire is not None and not wire.closed.done():
                return wire
            self._free.put_nowait(None)
        async with asyncio.timeout(timeout_s):
            wire = await self._free.get()
            if wire is not None and not wire.closed.done():
                return wire
            try:
                return await Wire.open(self._kind(**self.options), self._ended)
            except BaseException:
                self._free.put_nowait(None)
                raise

    def _ended(self, wire: Wire, replies: list[Any] | None) -> None:
        # Of a primary no longer: the next connection may find the new one.
        sound = replies is not None and not self._retired and not any(map(_ends, replies))
        if not sound:
            wire.close()
        self._free.put_nowait(wire if sound else None)

    async def retire(self) -> None:
        """Closes the idle connections, and the others after their pipelines."""
        self._retired = True
        await self._close([self._free.get_nowait() for _ in range(self._free.qsize())])

    async def close(self) -> None:
        """Closes all connections, after their pipelines."""
        await self._close([await self._free.get() for _ in range(self._free.maxsize)])

    async def _close(self, taken: list[Wire | None]) -> None:
        for wire in taken:
            if wire is not None:
                wire.close()
                await wire.closed
            self._free.put_nowait(None)


def _durable(command: Command) -> bool:
    return isinstance(command, ScriptCall) and command.script.durable


def _ends(reply: Any) -> bool:
    """Whether a connection with this reply is of no use any more."""
    refused = isinstance(reply, RedisError)
    return refused and (isinstance(reply, ReadOnlyError) or not isinstance(reply, ResponseError))

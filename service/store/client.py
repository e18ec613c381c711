"""The service's client of its store (Redis >= 7 or Valkey): one server, or a Cluster of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from itertools import chain
from typing import Any, Literal, Self

from redis.exceptions import AskError, ClusterDownError, NoScriptError, ResponseError

from service.observe import metrics, stages
from service.observe.registry import count
from service.store import server_info
from service.store.errors import AcksMissed, NodeDown, StoreError, StoreUnavailable, one_line
from service.store.node import Node
from service.store.outage import Outage
from service.store.pending import Pending, refusal
from service.store.script import Command, ScriptCall
from service.store.server_info import Condition
from service.store.topology import Topology
from service.store.url import StoreUrl

Operation = Literal[
    "exchange", "snapshot", "erasures", "catalogue", "popularity", "live", "ping", "other"
]
"""What a round trip to the store is for."""

_REDIRECTS = 5
"""Most times that one call follows a key to another node."""
_CHECKED_WITHIN_S = 5.0
_CONDITION: Command = ("INFO", "memory", "persistence", "replication")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


class Store:
    """Sends pipelines, each with one deadline, to the server of a URL or to the Cluster it is in.

    Args:
        url: redis://, rediss:// (TLS) or unix://; several hosts of a Cluster may be given,
            separated by commas.
        timeout_s: deadline of a call, its retries included.
        connections: most to a server, opened on first use.
        replica_acks: replicas that must have what a durable script wrote.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 2.0,
        connections: int = 16,
        replica_acks: int = 0,
    ) -> None:
        found = StoreUrl(url)
        self.url, self.timeout_s, self.replica_acks = found.shown, timeout_s, replica_acks
        self._topology = Topology(found, connections, replica_acks)

    async def request(
        self, command: Command, operation: Operation = "other", at: Node | None = None
    ) -> Any:
        """A command's reply, as `pipeline` gives it; raises StoreError."""
        (reply,) = await self.pipeline([command], operation, at)
        if isinstance(reply, StoreError):
            raise reply
        return reply

    async def pipeline(
        self, commands: Sequence[Command], operation: Operation = "other", at: Node | None = None
    ) -> list[Any]:
        """Each command's reply, or a StoreError in its place.

        One without a reply is sent again as it is until the deadline, so it must be one that may
        be carried out twice. A caller may leave: what is sent is carried out.
        """
        if not commands:
            return []
        started = time.perf_counter()
        try:
            return await self._until_answered(commands, operation, at)
        finally:
            timeline = stages.current.get()  # of a request that asks the log by itself
            if timeline is not None:
                timeline.add(stages.LOG, started, time.perf_counter())

    async def once(self, commands: Sequence[Command], operation: Operation = "other") -> list[Any]:
        """One attempt, for commands that must not be carried out twice. Each one's reply, or a
        StoreError in its place.

        Raises:
            StoreError: whether any was carried out is unknown.
        """
        sent = [c.with_source() if isinstance(c, ScriptCall) else c for c in commands]
        replies = await self._attempt(sent, self.timeout_s, operation, None)
        return [refusal(r) if isinstance(r, ResponseError) else r for r in replies]

    async def _until_answered(
        self, commands: Sequence[Command], operation: Operation, at: Node | None
    ) -> list[Any]:
        deadline, pause = time.monotonic() + self.timeout_s, _FIRST_PAUSE_S
        pending: list[Pending] = []
        sent, left, none_answered = commands, self.timeout_s, False
        while True:
            try:
                # Half the time for one attempt: a dead connection leaves time for another.
                replies = await self._attempt(sent, min(left, self.timeout_s / 2), operation, at)
                if not pending and not any(isinstance(reply, Exception) for reply in replies):
                    return replies
            except StoreError as error:
                if isinstance(error, NodeDown) and not any(one.cause for one in pending):
                    return [error] * len(commands)  # who waits already goes on
                replies, none_answered = [error] * len(sent), True
            pending = pending or [Pending(command) for command in commands]
            waiting = [one for one in pending if one.waiting]
            failed = [
                one.take(reply, none_answered) for one, reply in zip(waiting, replies, strict=True)
            ]
            waiting = [one for one in waiting if one.waiting]
            if any(failed):
                left = max(0.0, deadline - time.monotonic())
                await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            left = deadline - time.monotonic()
            if not waiting or left <= 0:
                for one in waiting:
                    one.give_up(self.timeout_s)
                return [one.answer for one in pending]
            sent, none_answered = [one.command for one in waiting], False

    async def _attempt(
        self,
        commands: Sequence[Command],
        timeout_s: float,
        operation: Operation,
        at: Node | None,
    ) -> list[Any]:
        """`execute`, counted and timed."""
        started = time.perf_counter()
        try:
            replies = await self.execute(commands, timeout_s, at)
        except StoreError:
            metrics.STORE_UP.set(0)
            metrics.STORE_ERRORS[operation].inc()
            raise
        finally:
            metrics.STORE_DURATION[operation].observe(time.perf_counter() - started)
        metrics.STORE_UP.set(0 if self.failing else 1)
        failures = [reply for reply in replies if isinstance(reply, Exception)]
        if failures:
            count((metrics.ACKS_MISSED, sum(isinstance(f, AcksMissed) for f in failures)))
            if not all(isinstance(failure, NoScriptError) for failure in failures):
                metrics.STORE_ERRORS[operation].inc()
        return replies

    async def execute(
        self, commands: Sequence[Command], timeout_s: float, at: Node | None = None
    ) -> list[Any]:
        """Sends commands in one write a node; their replies in order, a `ResponseError` where the
        server refused one.

        In a Cluster a key that has moved is followed, a part that fails spoils no other, and the
        commands without a reply have that error in its place. Commands without a key go to the
        node `at`, or to any.

        Raises:
            StoreUnavailable: any reply of the one server is missing after `timeout_s`: it may or
                may not have carried the commands out.
        """
        until = time.monotonic() + timeout_s
        if not self._topology.primaries:
            await self._topology.find(timeout_s)
        if self._topology.clustered:
            return await self._execute_by_slot(commands, until, at)
        replies = await self._send(commands, self._topology.primaries[0], False, until)
        if any(isinstance(reply, AskError) for reply in replies):
            raise StoreError(
                f"store {self.url} is a Cluster but does not answer CLUSTER SLOTS: "
                "grant its user +cluster|slots, and start again"
            )
        return replies

    async def _execute_by_slot(
        self, commands: Sequence[Command], until: float, at: Node | None
    ) -> list[Any]:
        nowhere = StoreUnavailable(f"store {self.url}: no node serves a key's slot")
        replies: list[Any] = [nowhere] * len(commands)
        parts = defaultdict[tuple[Node, bool], list[int]](list)
        for i, command in enumerate(commands):
            node = self._topology.node_of(command, at)
            if node is None:
                self._topology.look()
            else:
                parts[node, False].append(i)
        for _ in range(_REDIRECTS):
            sending = (
                self._send([commands[i] for i in own], node, asking, until)
                for (node, asking), own in parts.items()
            )
            answers = await asyncio.gather(*sending, return_exceptions=True)
            redirected = defaultdict[tuple[Node, bool], list[int]](list)
            for ((node, _), own), part in zip(parts.items(), answers, strict=True):
                if isinstance(part, BaseException):
                    if not isinstance(part, StoreError):
                        raise part
                    part = [part] * len(own)
                for i, reply in zip(own, part, strict=True):
                    replies[i] = reply
                    if isinstance(reply, AskError):
                        redirected[self._topology.redirected(reply, node)].append(i)
                    elif isinstance(reply, ClusterDownError):
                        self._topology.look()
            parts = redirected
            if not parts:
                return replies
        for i in chain(*parts.values()):
            replies[i] = StoreUnavailable(
                f"store {self.url}: a key was elsewhere {_REDIRECTS} times in a row"
            )
        return replies

    async def _send(
        self, commands: Sequence[Command], node: Node, asking: bool, until: float
    ) -> list[Any]:
        if node.down:
            self._topology.look()
            raise NodeDown(f"store {node.name} is down")
        sent = [c for command in commands for c in (("ASKING",), command)] if asking else commands
        try:
            replies = await node.send(sent, max(0.0, until - time.monotonic()))
        except StoreUnavailable:
            self._topology.look()
            raise
        return replies[1::2] if asking else replies

    @property
    def failing(self) -> bool:
        """Whether the last answer of a server that is still needed did not come."""
        return bool(self._topology.failing)

    @property
    def outage(self) -> Outage:
        """What callers notice while servers do not answer."""
        return self._topology.outage

    async def nodes(self) -> list[Node]:
        """The server, or the primaries of the Cluster."""
        if not self._topology.primaries:
            await self._topology.find(self.timeout_s)
        return self._topology.primaries

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Pages of the keys like a pattern. Those that are there all the time come, perhaps twice;
        one whose slot moves to another node of a Cluster meanwhile may not."""
        for node in await self.nodes():
            cursor = b"0"
            while True:
                scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                cursor, keys = await self.request(scan, at=node)
                if keys:
                    yield keys
                if cursor == b"0":
                    break

    async def check(self) -> None:
        """Asks the servers what they are. Raises StoreError if one is too old; logs risky
        settings."""
        if not self._topology.primaries:
            await self._topology.find(_CHECKED_WITHIN_S)
        for node in self._topology.primaries:
            (reply,) = await self.execute([("INFO",)], _CHECKED_WITHIN_S, node)
            if isinstance(reply, StoreError):
                raise reply
            if isinstance(reply, ResponseError):
                raise StoreError(f"store {node.name}: {one_line(reply)}")
            server_info.check(node.name, server_info.parse(reply), self.replica_acks)

    async def condition(self) -> Condition:
        """How the servers are; raises StoreError."""
        replies = [await self.request(_CONDITION, at=node) for node in await self.nodes()]
        return server_info.condition([server_info.parse(reply) for reply in replies])

    async def ping(self) -> None:
        await self.request(("PING",), "ping")

    async def close(self) -> None:
        """Waits for the pipelines under way, then closes the connections."""
        await self._topology.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

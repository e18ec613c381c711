"""The connection to the store (Redis >= 7 or Valkey): one server, or a Cluster of them.

Which of the two is asked of the server, so one URL setting serves both.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import hiredis
from redis.asyncio import Connection
from redis.asyncio.connection import UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from service.store.wire import Wire

logger = logging.getLogger(__name__)


Command = Sequence[str | bytes | int]

SLOTS = 16_384
_pack: Callable[[Any], bytes] = hiredis.pack_command
_PING: Command = ("PING",)
_REDIRECTS = 5
"""Most times that one call follows a key to another node."""
_DOWN_AFTER_S = 1.0
"""A server that fails for so long is no longer waited for, until it answers again."""
_LOOK_EVERY_S = 0.2
_ACKS_LATE_S = 0.05


class StoreError(Exception):
    """The store could not do what was asked. One line."""


class StoreUnavailable(StoreError):
    """No answer in time: whether the events were appended is unknown. Retry."""


class NodeDown(StoreUnavailable):
    """The server has failed for a while; nothing was sent to it."""


class AcksMissed(StoreUnavailable):
    """Too few replicas have said in time that they have a write: it is there, and may be lost with
    the primary. Nothing was sent again. `reply`: what the primary has answered."""

    def __init__(self, message: str, reply: Any = None) -> None:
        super().__init__(message)
        self.reply = reply


class Durable(tuple[str | bytes | int, ...]):
    """A command that is acknowledged only when `replica_acks` replicas have what it wrote.

    It must write something whenever its answer rests on a write, be it of another connection:
    `WAIT` reaches back from the last write of its own.
    """


class InvalidRequest(StoreError, ValueError):
    """The request itself cannot be stored; nothing was sent for it."""


class RecordDamaged(StoreError):
    """A user's record is not what the log wrote."""


class HistoryChanged(StoreError):
    """The mark to go on from is no longer in the user's history (erased, expired, restored), or
    that changes all the time."""


class Node:
    """One server: connections that send pipelines, and never send one twice.

    They are opened on first use; a caller beyond the most there may be waits.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any], connections: int, replica_acks: int = 0
    ) -> None:
        self.name, self.replica_acks = name, replica_acks
        self._acks_missed = False
        self.failing_since: float | None = None
        self._retired = False
        self.options = dict(options)
        self._kind: type[Connection] = self.options.pop("connection_class", Connection)
        self._most = connections
        self._free = asyncio.Semaphore(connections)
        self._idle: list[Wire] = []

    async def execute(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """`Store.execute` on this server; raises for all of the commands or for none."""
        started = time.monotonic()
        try:
            replies = await self._execute(commands, timeout_s)
        except StoreUnavailable:
            self.failing_since = self.failing_since or started
            raise
        self.failing_since = None
        return replies

    @property
    def down(self) -> bool:
        """Whether it is not worth waiting for."""
        since = self.failing_since
        return since is not None and time.monotonic() - since >= _DOWN_AFTER_S

    async def _execute(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        if not commands:
            return []
        until = time.monotonic() + timeout_s
        waits = self.replica_acks and any(isinstance(command, Durable) for command in commands)
        sent = [*commands, self._wait(timeout_s)] if waits else commands
        packed = b"".join(map(_pack, map(tuple, sent)))
        try:
            wire = await self._wire(timeout_s)
            replies = await wire.ask(packed, len(sent), until - time.monotonic())
            for reply in replies:
                if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                    raise reply  # it is not ready
            return self._unless_missed(commands, replies) if waits else replies
        except TimeoutError as error:
            raise StoreUnavailable(
                f"store {self.name}: no answer within {timeout_s:.1f} s"
            ) from error
        except (RedisError, OSError) as error:
            # The client wraps what fails while it connects.
            if isinstance(error.__cause__ or error, AuthenticationError):
                raise StoreError(
                    f"store {self.name}: {_one_line(error)}; check the URL's credentials"
                ) from error
            raise StoreUnavailable(f"store {self.name}: {_one_line(error)}") from error

    def _wait(self, timeout_s: float) -> Command:
        # Who has just missed them once does not hold up every pipeline for as long again.
        wait_ms = max(1, round(1000 * (_ACKS_LATE_S if self._acks_missed else 0.8 * timeout_s)))
        return ("WAIT", self.replica_acks, wait_ms)

    def _unless_missed(self, commands: Sequence[Command], answers: list[Any]) -> list[Any]:
        """The replies to the commands; AcksMissed for those that too few replicas have."""
        *replies, acks = answers
        self._acks_missed = not isinstance(acks, int) or acks < self.replica_acks
        if self._acks_missed:
            said = _one_line(acks) if isinstance(acks, Exception) else f"{acks} have it"
            missed = f"store {self.name}: {self.replica_acks} replicas are to have a write, {said}"
            for place, (command, reply) in enumerate(zip(commands, replies, strict=True)):
                if isinstance(command, Durable) and not isinstance(reply, Exception):
                    replies[place] = AcksMissed(missed, reply)
        return replies

    async def _wire(self, timeout_s: float) -> Wire:
        """A connection to ask once; `_ended` gets it back."""
        if self._idle and not self._free.locked():
            await self._free.acquire()
            return self._idle.pop()
        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            try:
                if self._idle:
                    return self._idle.pop()
                return await Wire.open(self._kind(**self.options), self._ended, self._lost)
            except BaseException:
                self._free.release()
                raise

    def _ended(self, wire: Wire, replies: list[Any] | None) -> None:
        self._free.release()
        if replies is None:
            return
        # A primary no longer: the next connection may find the new one.
        if self._retired or any(_ends_connection(reply) for reply in replies):
            wire.close()
        else:
            self._idle.append(wire)

    def _lost(self, wire: Wire) -> None:
        if wire in self._idle:
            self._idle.remove(wire)

    async def retire(self) -> None:
        """Close the idle connections, and the others after their pipeline."""
        self._retired = True
        await self._close_idle()

    async def close(self) -> None:
        """Close all connections, after their pipelines."""
        for _ in range(self._most):
            await self._free.acquire()
        await self._close_idle()
        for _ in range(self._most):
            self._free.release()

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for wire in idle:
            wire.close()
        await asyncio.gather(*(wire.closed for wire in idle))


def _ends_connection(reply: Any) -> bool:
    refused = isinstance(reply, RedisError)
    return refused and (isinstance(reply, ReadOnlyError) or not isinstance(reply, ResponseError))


class Store:
    """Sends pipelines to the server of a URL, or to the nodes of the Cluster it belongs to.

    `url`: redis://, rediss:// (TLS) or unix://; several hosts of a Cluster may be given, separated
    by commas. Connections are opened on first use, at most `connections` to a node.

    In a Cluster a pipeline is split by node and the parts are sent at once; a key that has moved
    is followed. A part that fails spoils no other.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 16,
        connect_timeout_s: float = 1.0,
        replica_acks: int = 0,
    ) -> None:
        self._connect_timeout_s, self._connections = connect_timeout_s, connections
        self.replica_acks = replica_acks
        self.url = without_password(url)
        defaults: dict[str, Any] = {
            # A pipeline has one deadline of its own, and is retried where its uids are known.
            "socket_timeout": None,
            "socket_connect_timeout": connect_timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        try:
            options = [defaults | {**parse_url(one)} for one in _each_host(url)]
        except ValueError as error:
            raise StoreError(f"store URL {self.url}: {error}") from None
        self._seeds = [
            Node(
                self.url if len(options) == 1 else without_password(one),
                own,
                connections,
                replica_acks,
            )
            for one, own in zip(_each_host(url), options, strict=True)
        ]
        self._options = {name: v for name, v in options[0].items() if name not in ("host", "port")}
        if self._options.get("connection_class") is UnixDomainSocketConnection:
            del self._options["connection_class"], self._options["path"]
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: list[Node | None] | None = None  # of a Cluster
        self._primaries: list[Node] = []
        self._single: Node | None = None
        self._watching: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[list[Any]]] = set()

    async def execute(
        self, commands: Sequence[Command], timeout_s: float, at: Node | None = None
    ) -> list[Any]:
        """Send commands in one write a node and return their replies in order.

        A command the server refused has its `ResponseError` for a reply. Raises
        `StoreUnavailable` if any reply is missing after `timeout_s`: the server may or may not
        have carried the commands out. In a Cluster the commands without a reply have that error
        in its place, and the others theirs.

        Commands without a key go to the node `at`, or to any. A cancelled caller leaves at once;
        the pipelines run on to their end, so that no later one finds their replies on the
        connection.
        """
        if self._single is not None:  # its connections take no harm from a caller that leaves
            return await self._execute(commands, timeout_s, at)
        task = asyncio.create_task(self._execute(commands, timeout_s, at))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def nodes(self, timeout_s: float) -> list[Node]:
        """The server, or the primaries of the Cluster."""
        if self._single is None and self._slots is None:
            await self._find_out(timeout_s)
        return self._needed

    @property
    def failing(self) -> bool:
        """Whether the last answer of a node that is still needed did not come."""
        return any(node.failing_since is not None for node in self._needed)

    @property
    def _needed(self) -> list[Node]:
        return self._primaries if self._single is None else [self._single]

    def _finished(self, task: asyncio.Task[list[Any]]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where the caller has left

    async def _execute(
        self, commands: Sequence[Command], timeout_s: float, at: Node | None
    ) -> list[Any]:
        until = time.monotonic() + timeout_s
        if self._single is None and self._slots is None:
            await self._find_out(timeout_s)
            timeout_s = max(0.0, until - time.monotonic())
        if self._single is None:
            return await self._execute_in_cluster(commands, until, at)
        if self._single.down:
            self._look()
            raise NodeDown(f"store {self._single.name} is down")
        try:
            replies = await self._single.execute(commands, timeout_s)
        except StoreUnavailable:
            self._look()
            raise
        if any(isinstance(reply, AskError) for reply in replies):
            raise StoreError(
                f"store {self.url} is a Cluster but does not answer CLUSTER SLOTS: "
                "grant its user +cluster|slots, and start again"
            )
        return replies

    # -- a Cluster -----------------------------------------------------------------------

    async def _find_out(self, timeout_s: float) -> None:
        """Ask whether this is a Cluster. Raises StoreError when no host answers."""
        layout: Any = None
        for place, seed in enumerate(self._seeds):
            try:
                # An equal share of the time for each host.
                (layout,) = await seed.execute([("CLUSTER", "SLOTS")], timeout_s / len(self._seeds))
                break
            except StoreUnavailable:
                if place == len(self._seeds) - 1:
                    raise
        if isinstance(layout, list):
            self._follow(layout, seed)
        elif len(self._seeds) > 1:
            raise StoreError(f"store {self.url}: several hosts, and {seed.name} is no Cluster")
        else:
            self._single = seed

    async def _execute_in_cluster(
        self, commands: Sequence[Command], until: float, at: Node | None
    ) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        parts: dict[tuple[Node, bool], list[int]] = {}
        for i, command in enumerate(commands):
            node = self._node_of(command, at)
            if node is None:
                replies[i] = StoreUnavailable(f"store {self.url}: no node serves a key's slot")
                self._look()
            elif node.down:
                replies[i] = NodeDown(f"store {self.url}: node {node.name} is down")
                self._look()
            else:
                parts.setdefault((node, False), []).append(i)
        for _ in range(_REDIRECTS):
            answers = await asyncio.gather(
                *(
                    self._part([commands[i] for i in own], node, asking, until)
                    for (node, asking), own in parts.items()
                )
            )
            redirected: dict[tuple[Node, bool], list[int]] = {}
            for ((node, _), own), part in zip(parts.items(), answers, strict=True):
                for i, reply in zip(own, part, strict=True):
                    replies[i] = reply
                    if isinstance(reply, AskError):
                        target = self._at(reply.host or _host(node), reply.port)
                        asking = not isinstance(reply, MovedError)
                        if not asking and self._slots is not None:
                            self._slots[reply.slot_id] = target
                            self._look()
                        redirected.setdefault((target, asking), []).append(i)
                    elif isinstance(reply, StoreUnavailable | ClusterDownError):
                        self._look()
            parts = redirected
            if not parts:
                break
        for own in parts.values():
            for i in own:
                replies[i] = StoreUnavailable(
                    f"store {self.url}: a key was elsewhere {_REDIRECTS} times in a row"
                )
        return replies

    async def _part(
        self, commands: Sequence[Command], node: Node, asking: bool, until: float
    ) -> list[Any]:
        sent = [c for command in commands for c in (("ASKING",), command)] if asking else commands
        try:
            replies = await node.execute(sent, max(0.0, until - time.monotonic()))
        except StoreError as error:
            return [error] * len(commands)
        return replies[1::2] if asking else replies

    def _node_of(self, command: Command, at: Node | None) -> Node | None:
        key = _key(command)
        if self._slots is not None and key is not None:
            return self._slots[key_slot(key)]
        primaries = self._primaries
        sound = [node for node in primaries if node.failing_since is None] or primaries
        return at or (random.choice(sound) if sound else None)

    def _at(self, host: str, port: int) -> Node:
        if (host, port) not in self._nodes:
            name = f"{host}:{port}"
            options = self._options | {"host": host, "port": port}
            self._nodes[host, port] = Node(name, options, self._connections, self.replica_acks)
        return self._nodes[host, port]

    def _follow(self, layout: Iterable[Sequence[Any]], told_by: Node) -> None:
        """Take over the answer to CLUSTER SLOTS: first slot, last slot, primary, replicas."""
        slots: list[Node | None] = [None] * SLOTS
        for first, last, (host, port, *_), *_ in layout:
            node = self._at(host.decode() if host else _host(told_by), port)
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots = slots
        self._primaries = list(dict.fromkeys(node for node in slots if node is not None))

    def _look(self) -> None:
        """Have every node asked, and a Cluster for its layout, until all answer."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            if self._single is None:
                await self._refresh()
            failing = [node for node in self._needed if node.failing_since is not None]
            await asyncio.gather(*(self._part([_PING], n, False, self._soon()) for n in failing))
            await asyncio.sleep(_LOOK_EVERY_S)
            whole = self._slots is not None and None not in self._slots
            if (self._single is not None or whole) and not self.failing:
                break
        for address, node in list(self._nodes.items()):
            if node not in self._primaries:
                del self._nodes[address]
                await node.retire()

    async def _refresh(self) -> None:
        nodes = list(dict.fromkeys([*self._primaries, *self._nodes.values(), *self._seeds]))
        # In any order, so that not every process believes the same node.
        nodes.sort(key=lambda node: (node.failing_since is not None, random.random()))
        for node in nodes:
            (layout,) = await self._part([("CLUSTER", "SLOTS")], node, False, self._soon())
            if isinstance(layout, list) and layout:
                self._follow(layout, node)
                return

    def _soon(self) -> float:
        return time.monotonic() + self._connect_timeout_s

    # ------------------------------------------------------------------------------------

    async def check(self, timeout_s: float = 5.0) -> None:
        """Ask the servers what they are. Raises StoreError if one is too old; logs risky
        settings."""
        for node in await self.nodes(timeout_s):
            (reply,) = await self.execute([("INFO",)], timeout_s, node)
            if isinstance(reply, StoreError):
                raise reply
            if isinstance(reply, ResponseError):
                raise StoreError(f"store {node.name}: {_one_line(reply)}")
            _check(node.name, reply, self.replica_acks)

    async def close(self) -> None:
        """Wait for the pipelines under way, then close the connections."""
        while self._running:
            await asyncio.wait(self._running)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for node in (*self._seeds, *self._nodes.values()):
            await node.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _check(name: str, reply: bytes, replica_acks: int) -> None:
    info = dict(
        line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line
    )
    version = info.get("redis_version", "0")
    if "valkey_version" not in info and int(version.split(".")[0]) < 7:
        raise StoreError(f"store {name} is Redis {version}; 7 or newer, or Valkey, is needed")
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        logger.warning(
            "store %s: maxmemory-policy is %s, so records can vanish under memory pressure; "
            "set it to noeviction",
            name,
            info["maxmemory_policy"],
        )
    replicas = int(info.get("connected_slaves", 0))
    if replicas < replica_acks:
        logger.warning(
            "store %s: it has %d replicas, and interactions are acknowledged when %d have them "
            "(replica_acks): none will be",
            name,
            replicas,
            replica_acks,
        )
    if info.get("aof_enabled") == "0":
        logger.warning(
            "store %s: appendonly is off, so accepted interactions are lost when it stops; "
            "set appendonly yes",
            name,
        )


_KEYLESS = frozenset({"PING", "WAIT", "INFO", "SCAN", "FLUSHALL", "CLUSTER"})
_KEY_AT = {"EVAL": 3, "EVALSHA": 3, "MEMORY": 2}


def _key(command: Command) -> bytes | None:
    name = str(command[0])
    if name in _KEYLESS:
        return None
    key = command[_KEY_AT.get(name, 1)]
    return key if isinstance(key, bytes) else str(key).encode()


def _host(node: Node) -> str:
    return str(node.options.get("host", "localhost"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _each_host(url: str) -> list[str]:
    """The URL once for each of its comma-separated hosts."""
    scheme, separator, rest = url.partition("://")
    if scheme not in ("redis", "rediss"):
        return [url]
    end = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
    login, at, hosts = rest[:end].rpartition("@")
    return [f"{scheme}{separator}{login}{at}{host}{rest[end:]}" for host in hosts.split(",")]


def without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]

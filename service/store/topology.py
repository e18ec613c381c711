"""Which server has which key: one has all, or in a Cluster each primary some of the slots.

Which of the two it is is asked of the servers, so one URL setting serves both.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from service.store.errors import StoreError, StoreUnavailable
from service.store.node import Node
from service.store.outage import Outage
from service.store.script import Command, key
from service.store.url import StoreUrl

SLOTS = 16_384
_PING: Command = ("PING",)
_LAYOUT: Command = ("CLUSTER", "SLOTS")
_CONNECTS_WITHIN_S = 1.0
_LOOK_EVERY_S = 0.2


class Topology:
    """The servers behind a URL.

    Attributes:
        primaries: the server, or those of the Cluster; none until `find`.
        clustered: whether it is a Cluster.
        outage: of its servers.
    """

    def __init__(self, url: StoreUrl, connections: int, replica_acks: int) -> None:
        defaults: dict[str, Any] = {
            # A pipeline has one deadline of its own, and is sent again by who may do so.
            "socket_timeout": None,
            "socket_connect_timeout": _CONNECTS_WITHIN_S,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self.url, self._limits = url.shown, (connections, replica_acks)
        self._seeds = [Node(name, defaults | own, *self._limits) for name, own in url.hosts]
        where = ("host", "port", "path")
        self._options = {
            name: value
            for name, value in (defaults | url.hosts[0][1]).items()
            if name not in where and value is not UnixDomainSocketConnection
        }
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: list[Node | None] | None = None
        self.primaries: list[Node] = []
        self.clustered = False
        self.outage = Outage()
        self._watching: asyncio.Task[None] | None = None

    @property
    def failing(self) -> list[Node]:
        """Those whose last answer did not come, of the primaries."""
        return [node for node in self.primaries if node.failing_since is not None]

    async def find(self, timeout_s: float) -> None:
        """Asks what this is, once. Raises StoreError when no host answers."""
        if self.clustered:
            return
        layout: Any = None
        for seed in self._seeds:
            try:
                # An equal share of the time for each host.
                (layout,) = await seed.send([_LAYOUT], timeout_s / len(self._seeds))
                break
            except StoreUnavailable:
                if seed is self._seeds[-1]:
                    raise
        if isinstance(layout, list):
            self._take_over(layout, seed)
        elif len(self._seeds) > 1:
            raise StoreError(f"store {self.url}: several hosts, and {seed.name} is no Cluster")
        else:
            self.primaries = [seed]

    def node_of(self, command: Command, at: Node | None) -> Node | None:
        """The node of its key, None where no node has it; without a key `at`, or any that works."""
        assert self._slots is not None
        found = key(command)
        if found is not None:
            return self._slots[key_slot(found)]
        working = [node for node in self.primaries if node.failing_since is None]
        candidates = working or self.primaries
        return at or (random.choice(candidates) if candidates else None)

    def redirected(self, reply: AskError, by: Node) -> tuple[Node, bool]:
        """Where a command is to be sent that a node has redirected, and whether after ASKING."""
        target = self._node_at(reply.host or _host(by), reply.port)
        if not isinstance(reply, MovedError):
            return target, True
        assert self._slots is not None
        self._slots[reply.slot_id] = target
        self.look()
        return target, False

    def look(self) -> None:
        """Has every node that fails asked, and a Cluster for its layout, until all answer."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for node in (*self._seeds, *self._nodes.values()):
            await node.close()

    async def _watch(self) -> None:
        while True:
            if self._slots is not None:
                await self._refresh()
            await asyncio.gather(*(self._asked(node, _PING) for node in self.failing))
            await asyncio.sleep(_LOOK_EVERY_S)
            self.outage.look(self.primaries)
            if not self.failing and None not in (self._slots or ()):
                break
        for address, node in list(self._nodes.items()):
            if node not in self.primaries:
                del self._nodes[address]
                await node.retire()

    async def _refresh(self) -> None:
        nodes = list(dict.fromkeys([*self.primaries, *self._nodes.values(), *self._seeds]))
        # In any order, so that not every process believes the same node.
        nodes.sort(key=lambda node: (node.failing_since is not None, random.random()))
        for node in nodes:
            layout = await self._asked(node, _LAYOUT)
            if isinstance(layout, list) and layout:
                self._take_over(layout, node)
                return

    async def _asked(self, node: Node, command: Command) -> Any:
        try:
            return (await node.send([command], _CONNECTS_WITHIN_S))[0]
        except StoreError:
            return None

    def _take_over(self, layout: Iterable[Sequence[Any]], told_by: Node) -> None:
        """The answer to CLUSTER SLOTS: first slot, last slot, primary, replicas; and so on."""
        slots: list[Node | None] = [None] * SLOTS
        for first, last, (host, port, *_), *_ in layout:
            node = self._node_at(host.decode() if host else _host(told_by), port)
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots, self.clustered = slots, True
        self.primaries = list(dict.fromkeys(node for node in slots if node is not None))

    def _node_at(self, host: str, port: int) -> Node:
        if (host, port) not in self._nodes:
            options = self._options | {"host": host, "port": port}
            self._nodes[host, port] = Node(f"{host}:{port}", options, *self._limits)
        return self._nodes[host, port]


def _host(node: Node) -> str:
    return str(node.options.get("host", "localhost"))

"""Takes new connections off a listening socket as fast as they come.

libuv takes one in a turn of the event loop. Under load turns are long, and a connection that nobody
has taken waits in the kernel, where it can't even be refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

BACKLOG = 2048
MOST_AT_ONCE = 128
PAUSE_S = 0.5


class Acceptor:
    """Listens from the beginning until `close`.

    Takes one connection in a turn, twice as many in each that did not find the last one: so workers
    on one socket share what comes as long as they keep up with it.
    """

    def __init__(self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._listener, self._protocol = listener, protocol
        self._loop = asyncio.get_running_loop()
        self._at_once = 1
        self._opening: set[asyncio.Task[object]] = set()
        self._paused: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Also a second time."""
        if self._listener.fileno() < 0:
            return
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):  # none, or another worker has it
                self._at_once = 1
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # too many files are open, for instance
                logger.error("connections not accepted for %g s: %s", PAUSE_S, error)
                self._loop.remove_reader(self._listener)
                self._paused = self._loop.call_later(
                    PAUSE_S, self._loop.add_reader, self._listener, self._accept
                )
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opening = self._loop.create_task(
                self._loop.connect_accepted_socket(self._protocol, connection)
            )
            self._opening.add(opening)
            opening.add_done_callback(self._opened)
        self._at_once = min(MOST_AT_ONCE, 2 * self._at_once)

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled() and (error := opening.exception()) is not None:
            logger.debug("a connection was not opened: %s", error)

"""One process of a service, from its start to the end of its last request.

SIGTERM or SIGINT: not ready any more, served on for `drain_s`, then the port is closed and what is
under way is finished, for `shutdown_s` at most. Again, or SIGQUIT: stopped at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

import uvicorn

from service.http.acceptor import Acceptor
from service.http.connection import bounded
from service.lifecycle import STARTUP_FAILURE, Drain
from service.settings import Settings

logger = logging.getLogger(__name__)

STOPPED_AT_ONCE = 1
TWICE_S = 0.5
"""Programs that start others often send a signal to the process and to its group, too: a second
one within this time is the first one's echo."""
LAST_REQUESTS_S = 0.2
"""Between closing the port and closing connections without a request: some have just been opened
for one that is still to be read."""
AT_ONCE_S = 3
OBJECTS_EACH = 100
"""That the garbage collector knows of: more than a waiting request and its connection are."""


class Server(uvicorn.Server):
    """Serves in this process.

    Args:
        supervisor: the process to stop without, when this is one of its workers. It is the one
            that gets a terminal's signals, and repeats them.
        serving: set once requests are answered.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        supervisor: int | None = None,
        serving: Event | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                partial(_app, settings),
                factory=True,
                lifespan="on",
                workers=1,
                log_config=None,
                http=bounded(
                    settings.read_timeout_s, settings.max_head_bytes, settings.max_header_fields
                ),
                proxy_headers=False,  # the application's own: it asks who the proxy is first
                ws="none",
                access_log=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.shutdown_s,
            )
        )
        self.settings, self.supervisor, self.serving = settings, supervisor, serving
        self._signalled: float | None = None
        self._told = False

    @property
    def drain(self) -> Drain:
        drain: Drain = self.lifespan.state["drain"]
        return drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for listener in sockets or ():
            self.servers.append(Acceptor(listener, self._protocol))  # type: ignore[arg-type]
        # What is there now stays: looking through it for garbage takes a tenth of a second.
        # Requests and their connections leave no cycles behind, but as long as they wait they look
        # like new objects, among which garbage is sought again and again while all stands still.
        gc.collect()
        gc.freeze()
        gc.set_threshold(max(20_000, OBJECTS_EACH * self.settings.max_queue), 10, 10)
        if self.started and self.serving is not None:
            self.serving.set()

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(self.config, self.server_state, self.lifespan.state)
        return protocol

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # Before there is a loop: what a signal's handler raises, one that begins may swallow.
        on_signal: dict[signal.Signals, Any] = {
            signal.SIGTERM: self.handle_exit,
            signal.SIGINT: signal.SIG_IGN if self.supervisor else self.handle_exit,
            signal.SIGQUIT: self._stop_at_once,
        }
        before = {number: signal.signal(number, do) for number, do in on_signal.items()}
        try:
            super().run(sockets)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # As it comes, it sends itself the signal again at the end, and dies of it.
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Between any two lines of this thread: no lock may be taken here, so nothing is logged.
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            if self.started:
                self.drain.begun = True
            else:
                self.should_exit = True
        elif self.supervisor is None and now > self._signalled + TWICE_S:
            self._stop_at_once(sig, frame)

    def _stop_at_once(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = self.force_exit = True
        signal.alarm(AT_ONCE_S)  # if all else fails, it ends this process
        if self.started:
            self.drain.over_by = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        if self.supervisor is not None and os.getppid() != self.supervisor:
            logger.error("the supervisor is gone: stopping")
            self.drain.begun = self.should_exit = True
        if self._signalled is not None:
            if not self._told:
                self._tell()
            if time.monotonic() >= self._signalled + self.settings.drain_s:
                self.should_exit = True
        return await super().on_tick(counter)

    def _tell(self) -> None:
        from service.observe import metrics

        self._told = True
        metrics.READY.set(0)
        if self.settings.drain_s:
            logger.info("draining: serving for another %g s", self.settings.drain_s)
            self._let_go()

    def _let_go(self) -> None:
        """Clients that keep their connections have to look for another process."""
        close = (b"connection", b"close")
        if close not in self.config.encoded_headers:
            self.config.encoded_headers.append(close)
            self.server_state.default_headers = [*self.server_state.default_headers, close]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("stopping")
        if self.force_exit:
            self.config.timeout_graceful_shutdown = 0
        else:
            self.drain.over_by = time.monotonic() + self.settings.shutdown_s
            for server in self.servers:
                server.close()
            self._let_go()
            await asyncio.sleep(LAST_REQUESTS_S)
        await super().shutdown(sockets)
        if self.force_exit:  # left out above: the application would have to end by cancellation
            await self.lifespan.shutdown()


def _app(settings: Settings) -> Any:
    from service.app import create_app  # takes seconds: not in the supervisor, which needs none

    return create_app(settings)


def run_server(
    settings: Settings,
    listeners: list[socket.socket],
    supervisor: int | None = None,
    serving: Event | None = None,
) -> int:
    """Serves in this process until it is told to stop; its exit status."""
    server = Server(settings, supervisor=supervisor, serving=serving)
    server.run(listeners)
    if not server.started:
        return STARTUP_FAILURE
    return STOPPED_AT_ONCE if server.force_exit else 0

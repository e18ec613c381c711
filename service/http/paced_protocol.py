"""A connection that is read at the pace at which its requests are answered.

The server's own is parsed as it comes: the requests of a caller who reads no answers would grow.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLICE = 16_384
"""Bytes that are parsed in one turn of the event loop: some hundred small requests."""


class PacedProtocol(HttpToolsProtocol):
    """Parses a slice in each turn of the event loop, and the next once all requests before it are
    being answered. A subclass parses it.

    held: received, and still to be parsed.
    """

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.held = b""

    def take(self, data: bytes) -> None:
        """Parses the next slice."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self)

    def data_received(self, data: bytes) -> None:
        if self.held:  # it was on its way
            self.held += data
            return
        if len(data) <= SLICE:
            self.take(data)
            return
        self.take(data[:SLICE])
        self.held = data[SLICE:]
        self.flow.pause_reading()
        self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.transport.is_closing():
            self.held = b""
        if not self.held or self.pipeline or self.flow.write_paused:
            return
        data, self.held = self.held[:SLICE], self.held[SLICE:]
        self.take(data)
        cycle = self.cycle
        if self.held:
            self.loop.call_soon(self._go_on)
        elif cycle is None or cycle.response_complete or len(cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.held and not self.pipeline:
            self.loop.call_soon(self._go_on)


class _Flow(FlowControl):
    """Reads no more while there are requests that nobody has begun to answer: the body of the one
    that is answered is here, then."""

    def __init__(self, transport: asyncio.Transport, connection: PacedProtocol) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        one = self._connection
        if not (one.pipeline or one.held or one.transport.is_closing()):
            super().resume_reading()

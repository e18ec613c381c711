"""One connection to a server of the store: a pipeline out, its replies in.

redis-py opens it and logs in. From then on its bytes come straight here: for a command, redis-py's
own way takes several times what packing it and parsing its reply do. This is the only file that
uses what redis-py keeps private.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

_MORE = object()  # what the parser says when a reply is not whole yet


Ended = Callable[["Wire", list[Any] | None], None]


class Wire(asyncio.Protocol):
    """A connection that is logged in, for one pipeline at a time.

    Args:
        ended: called once after each `ask`, also where nobody waits for the replies any more;
            they are None when the connection was lost.

    Attributes:
        closed: done once the connection is closed, by whomever.
    """

    def __init__(self, connection: Connection, ended: Ended) -> None:
        self._ended = ended
        self._writer, parse_error = _taken_from(connection)
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=parse_error, notEnoughData=_MORE
        )
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        self._wanted = 0
        self._replies: list[Any] = []
        self._answer: asyncio.Future[list[Any]] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, connection: Connection, ended: Ended) -> Self:
        """Connects and logs in. Raises RedisError or OSError."""
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return cls(connection, ended)

    def ask(self, packed: bytes, count: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        """Sends so many commands in one write. What comes of it: a reply each, an error that the
        server answered being one; TimeoutError; or a RedisError: the connection was lost."""
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        self._wanted, self._replies = count, []
        self._deadline = loop.call_later(timeout_s, self._fail, TimeoutError())
        try:
            self._transport.write(packed)
        except RuntimeError as error:  # uvloop's, of a connection that was reset while it was idle
            self._fail(RedisConnectionError(str(error)))
        return answer

    def close(self) -> None:
        """The transport ends a little later: `closed`."""
        self._writer.close()

    # -- asyncio.Protocol ----------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while len(self._replies) < self._wanted:
                reply = self._reader.gets()
                if reply is _MORE:
                    return
                self._replies.append(reply)
        except InvalidResponse as error:
            self._fail(error)
            return
        if self._answer is None or self._reader.has_data():  # that was not asked for
            self._fail(RedisConnectionError("the server answered what was not asked"))
            return
        if not self._answer.done():
            self._answer.set_result(self._replies)
        self._end(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(RedisConnectionError(str(exc) if exc else "the server closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    # ------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        self._transport.abort()
        if self._answer is None:
            return
        if not self._answer.done():
            self._answer.set_exception(error)
        self._end(None)

    def _end(self, replies: list[Any] | None) -> None:
        assert self._deadline is not None
        self._deadline.cancel()
        self._answer = self._deadline = None
        self._wanted, self._replies = 0, []
        self._ended(self, replies)


def _taken_from(
    connection: Connection,
) -> tuple[asyncio.StreamWriter, Callable[[str], Exception]]:
    """The stream of a connection, which lets go of it, and what makes an exception of an error
    that the server answers. redis-py has no public way to either."""
    writer, parse_error = connection._writer, connection._parser.parse_error
    assert writer is not None
    connection._reader = connection._writer = None
    return writer, parse_error

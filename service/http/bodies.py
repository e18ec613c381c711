"""Bodies of requests: how large they may be, and how long they may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import problem

_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"


class BodyRefused(HTTPException):
    """A body that is too large, or too slow."""


class BoundBodies:
    """Refuses what is too large before it is read, or as soon as it gets too large (413), and what
    is not there in time (408).

    Args:
        max_bytes: of one body.
        timeout_s: from the request's head to the end of its body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = _length(scope) if scope["type"] == "http" else 0
        if length == 0:
            await self.app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        received, whole, answering = 0, False, False

        async def bounded() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            if length is not None and length > self.max_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BodyRefused(
                    408,
                    f"body: it was not there after {self.timeout_s:g} s (read_timeout_s)",
                    {"Connection": "close"},
                ) from None
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            whole = not message.get("more_body")
            return message

        async def watched(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self.app(scope, bounded, watched)
        except BodyRefused as refused:
            if answering:
                raise
            headers = dict(refused.headers or {})
            answer = problem(refused.status_code, refused.detail, headers=headers)
            await answer(scope, receive, send)

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, f"body: at most {self.max_bytes} bytes (max_body_bytes)")


def _length(scope: Scope) -> int | None:
    """The bytes that a body will have; None: it does not say."""
    length: int | None = 0
    for name, value in scope["headers"]:
        if name == _ENCODING:
            return None
        if name == _LENGTH:
            length = int(value)  # the server has seen that it is a number
    return length

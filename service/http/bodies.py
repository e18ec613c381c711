"""Bodies of requests: what they may be, how large, how long they may take to arrive, and how much
of them is kept at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import json_shape
from service.http.connection import WHOLE
from service.http.json_shape import Shape, ShapeError
from service.http.problems import RETRY_AFTER_S, ProblemError, refusal
from service.settings import Settings

BODY = "tim4rec.body"
"""In a request's scope: its body, which is also received in one piece."""

_LENGTH, _TRANSFER, _CODING = b"content-length", b"transfer-encoding", b"content-encoding"
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class ReadBodies:
    """Hands on requests with their whole body, and answers those whose body is too large (413),
    coded (415), not there in time (408), has more parts than are looked at (422), or is one too
    many to keep just now (503). Of a method that takes no body, none is read.

    Args:
        routers: whose routes say how long the lists of their bodies may be.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, routers: Iterable[APIRouter]) -> None:
        self.app = app
        self.max_bytes, self.timeout_s = settings.max_body_bytes, settings.read_timeout_s
        self.max_buffered = settings.max_buffered_bytes
        self.buffered = 0
        """Bytes of bodies of all requests that are under way."""
        self._shapes = _shapes(settings, routers)
        json_shape.warm()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length, coding = _said(scope) if scope["method"] in _WITH_BODY else (0, None)
        if length == 0:
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            self._check_head(length, coding)
            content = scope[BODY] = await self._read(scope, receive, parts)
        except ProblemError as error:
            await refusal(error)(scope, receive, send)
        else:
            await self.app(scope, _again(content, receive), send)
        finally:
            self.buffered -= sum(map(len, parts))

    def _check_head(self, length: int | None, coding: str | None) -> None:
        if coding is not None:
            raise ProblemError(
                415,
                f"Content-Encoding: {coding!r} is not decoded; send the body as it is, without "
                "this header",
                headers={"Accept-Encoding": "identity"},
            )
        if length is not None and length > self.max_bytes:
            raise self._too_large()

    async def _read(self, scope: Scope, receive: Receive, parts: list[bytes]) -> bytes:
        """All of a body, which is in `parts` as far as it has come.

        Raises:
            ProblemError: it is not to be had.
        """
        try:
            if WHOLE in scope:  # it needs no watch, which costs more than all else done for it
                await self._receive(receive, parts)
            else:
                async with asyncio.timeout(self.timeout_s):
                    await self._receive(receive, parts)
        except TimeoutError:
            raise ProblemError(
                408,
                f"body: it was not there after {self.timeout_s:g} s (read_timeout_s)",
                headers={"Connection": "close"},
            ) from None
        parts[:] = [b"".join(parts)]
        try:
            self._shapes.get((scope["method"], scope["path"]), _ANY).check(parts[0])
        except ShapeError as error:
            raise ProblemError(422, str(error), field=error.field) from None
        return parts[0]

    async def _receive(self, receive: Receive, parts: list[bytes]) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ProblemError(400, "body: the caller has left before its end")
            part = message.get("body", b"")
            size += len(part)
            if size > self.max_bytes:
                raise self._too_large()
            if self.buffered + len(part) > self.max_buffered:
                raise ProblemError(
                    503,
                    "as many bytes of bodies are kept as may be (max_buffered_bytes); nothing was "
                    "done: try again",
                    headers={"Retry-After": str(RETRY_AFTER_S)},
                )
            self.buffered += len(part)
            parts.append(part)
            more = message.get("more_body", False)

    def _too_large(self) -> ProblemError:
        return ProblemError(413, f"body: at most {self.max_bytes} bytes (max_body_bytes)")


_ANY = Shape()


def _again(content: bytes, receive: Receive) -> Receive:
    """Receives the body in one piece, then what comes."""
    handed = False

    async def received() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": content, "more_body": False}

    return received


def _said(scope: Scope) -> tuple[int | None, str | None]:
    """The bytes that a body will have, None where it does not say; and how it is coded."""
    length: int | None = 0
    coding = None
    for name, value in scope["headers"]:
        if name == _TRANSFER:
            length = None
        elif name == _LENGTH and length is not None:
            length = int(value)  # the server has seen that it is a number
        elif name == _CODING and value.strip().lower() not in (b"", b"identity"):
            coding = value.decode("latin-1")[:64]
    return length, coding


def _shapes(settings: Settings, routers: Iterable[APIRouter]) -> Mapping[tuple[str, str], Shape]:
    found = {}
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute) or route.body_field is None:
                continue
            model = route.body_field.field_info.annotation
            if isinstance(model, type) and issubclass(model, BaseModel):
                shape = Shape.of(model, settings)
                found.update({(method, route.path): shape for method in route.methods or ()})
    return found

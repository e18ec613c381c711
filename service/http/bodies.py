"""Bodies of requests: what they may be, how large, how long they may take to arrive, and how much
of them is kept at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import json_shape
from service.http.connection import WHOLE
from service.http.json_shape import Shape, ShapeError
from service.http.problems import RETRY_AFTER_S, problem
from service.settings import Settings

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
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self.app(scope, receive, send)
            return
        length, coding = _said(scope)
        if length == 0:
            await self.app(scope, receive, send)
            return
        refusal: Response | None = None
        if coding is not None:
            refusal = problem(
                415,
                f"Content-Encoding: {coding!r} is not decoded; send the body as it is, without "
                "this header",
                headers={"Accept-Encoding": "identity"},
            )
        elif length is not None and length > self.max_bytes:
            refusal = self._too_large()
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        body = _Body(self)
        try:
            # What is here needs no watch, which costs more than all else that is done for it.
            read = body.take if WHOLE in scope else body.read
            refusal = await read(receive) or self._misshapen(scope, body.content)
            await (refusal or self.app)(scope, body.again(receive), send)
        finally:
            self.buffered -= body.size

    def _too_large(self) -> Response:
        return problem(413, f"body: at most {self.max_bytes} bytes (max_body_bytes)")

    def _misshapen(self, scope: Scope, content: bytes) -> Response | None:
        shape = self._shapes.get((scope["method"], scope["path"]), _ANY)
        try:
            shape.check(content)
        except ShapeError as error:
            return problem(422, str(error), [{"field": error.field, "message": str(error)}])
        return None


_ANY = Shape()


class _Body:
    """One request's body, as far as it has come."""

    def __init__(self, owner: ReadBodies) -> None:
        self._owner = owner
        self.size = 0
        self.content = b""

    async def read(self, receive: Receive) -> Response | None:
        """All of it; the refusal, where it is not to be had."""
        timeout_s = self._owner.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self.take(receive)
        except TimeoutError:
            return problem(
                408,
                f"body: it was not there after {timeout_s:g} s (read_timeout_s)",
                headers={"Connection": "close"},
            )

    async def take(self, receive: Receive) -> Response | None:
        """`read`, however long it takes."""
        owner, parts = self._owner, list[bytes]()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return problem(400, "body: the caller has left before its end")
            part = message.get("body", b"")
            if self.size + len(part) > owner.max_bytes:
                return owner._too_large()
            if owner.buffered + len(part) > owner.max_buffered:
                return problem(
                    503,
                    "as many bytes of bodies are kept as may be (max_buffered_bytes); nothing was "
                    "done: try again",
                    headers={"Retry-After": str(RETRY_AFTER_S)},
                )
            owner.buffered += len(part)
            self.size += len(part)
            parts.append(part)
            more = message.get("more_body", False)
        self.content = b"".join(parts)
        return None

    def again(self, receive: Receive) -> Receive:
        """Receives the body in one piece, then what comes."""
        handed = False

        async def received() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": self.content, "more_body": False}

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

"""What a request asks for: its path as it was sent, under whatever prefix a proxy shows the
service, and HEAD as GET without the body."""

from __future__ import annotations

import ipaddress
import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.addresses import PREFIX, Network

_PREFIX = "tim4rec.prefix"
_FORWARDED = b"x-forwarded-prefix"
_prefix = re.compile(PREFIX)


class ReadRequestLine:
    """Routes on the path before percent-decoding, so that an id in it may hold anything: a slash,
    a line break, another route's ending. Routes decode what they take from it.

    Args:
        root_path: the prefix, which the proxy may have taken off or not.
        trusted: proxies whose X-Forwarded-Prefix is believed in its place; None: all.
    """

    def __init__(
        self, app: ASGIApp, *, root_path: str, trusted: tuple[Network, ...] | None
    ) -> None:
        self.app, self.root_path, self.trusted = app, root_path, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope["path"]
        prefix = self._prefix(scope)
        if prefix and path == prefix:
            await RedirectResponse(f"{prefix}/")(scope, receive, send)
            return
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        # The server goes by its own: with HEAD it sends no body.
        scope = {**scope, "path": path, _PREFIX: prefix}
        if scope["method"] == "HEAD":
            scope["method"], send = "GET", _without_body(send)
        await self.app(scope, receive, send)

    def _prefix(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == _FORWARDED and self._is_trusted(scope):
                said: str = value.decode("latin-1").rstrip("/")
                return said if _prefix.fullmatch(said) else self.root_path
        return self.root_path

    def _is_trusted(self, scope: Scope) -> bool:
        if self.trusted is None:
            return True
        try:
            peer = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return any(peer in network for network in self.trusted)


class UnderPrefix:
    """Tells the application of the prefix, for the links that it writes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get(_PREFIX)
        if prefix:
            scope["root_path"], scope["path"] = prefix, prefix + scope["path"]
        await self.app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent

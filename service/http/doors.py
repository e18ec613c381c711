"""Which port leads where, and what needs a key beside the API's own routes."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.dependencies import CHALLENGE, REFUSAL
from service.http.keys import Keys
from service.http.problems import problem
from service.settings import Settings

OPERATIONS = frozenset(("/livez", "/readyz", "/metrics"))
METRICS = "/metrics"
DOCUMENTATION = frozenset(("/docs", "/openapi.json"))
_KEY = b"x-api-key"


class Doors:
    """With a port for operations, nothing else is on it, and `/metrics` only there. Without one,
    `/metrics` wants a key where the API does. So does the documentation, unless it is public."""

    def __init__(self, app: ASGIApp, *, settings: Settings, keys: Keys) -> None:
        self.app, self.keys = app, keys
        self.operations_port = settings.operations_port
        guarded = set() if settings.public_docs else set(DOCUMENTATION)
        self._guarded = guarded if self.operations_port else guarded | {METRICS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if self.operations_port is not None:
                server = scope.get("server")
                at_operations = server is not None and server[1] == self.operations_port
                if path not in OPERATIONS if at_operations else path == METRICS:
                    other = "another port" if at_operations else "the port for operations"
                    await problem(404, f"it is on {other}")(scope, receive, send)
                    return
            if path in self._guarded and self.keys and not self.keys.have(_shown(scope)):
                await problem(401, REFUSAL, headers=CHALLENGE)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _shown(scope: Scope) -> str | None:
    found = (value.decode("latin-1") for name, value in scope["headers"] if name == _KEY)
    return next(found, None)

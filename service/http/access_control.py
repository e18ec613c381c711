"""Who may come in, judged by the head of a request alone, before a byte of its body is read."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.addresses import host_name, is_local
from service.http.observer import PROBES
from service.http.problems import problem
from service.keys import Keys

if TYPE_CHECKING:
    from service.settings import Settings

METRICS = "/metrics"
OPERATIONS = PROBES | {METRICS}
DOCUMENTATION = ("/docs", "/openapi.json", "/static-offline-docs")
ADMIN, USERS = "/admin", "/users"

REFUSAL = "X-API-Key is missing or not one of this service's {}keys"
CHALLENGE = {"WWW-Authenticate": 'APIKey realm="tim4rec", header="X-API-Key"'}
KNOWN_HOSTS = 256
_KEY, _HOST = b"x-api-key", b"host"


class AccessControl:
    """Who comes to which path, at which port.

    With a port for operations, nothing else is on it, and `/metrics` only there. Probes and the
    page are for everybody, and the documentation where it is public; `/admin`, and the list of all
    users, want an admin key, and all else an API key, where there are any. Without API keys a
    browser is not to be made to ask for a page of somebody else's: the host that it asks for has to
    be ours.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, keys: Keys, admin_keys: Keys) -> None:
        self.app, self.keys, self.admin_keys = app, keys, admin_keys
        self.operations_port = settings.operations_port
        hosts = frozenset(settings.allowed_hosts)
        self._is_ours = lru_cache(KNOWN_HOSTS)(lambda host: _is_ours(host, hosts))
        self._open = set(PROBES)
        self._open_below: tuple[str, ...] = ()
        if settings.operations_port is not None:
            self._open.add(METRICS)
        if settings.page:
            self._open.add("/")
            self._open_below += ("/page/",)
        if settings.public_docs:
            self._open.update(DOCUMENTATION)
            self._open_below += tuple(f"{path}/" for path in DOCUMENTATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._refusal(scope) or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        if self.operations_port is not None:
            server = scope.get("server")
            at_operations = server is not None and server[1] == self.operations_port
            if path not in OPERATIONS if at_operations else path == METRICS:
                other = "another port" if at_operations else "the port for operations"
                return problem(404, f"it is on {other}")
        key, is_open = None, not self.keys
        for name, value in scope["headers"]:
            if name == _KEY and key is None:
                key = value.decode("latin-1")
            elif name == _HOST and is_open and not self._is_ours(value):
                return problem(
                    421,
                    "Host: names neither this machine nor one of allowed_hosts "
                    "(TIM4REC_ALLOWED_HOSTS), which a service without keys wants",
                )
        if path in (USERS, ADMIN) or path.startswith(f"{ADMIN}/"):
            if not self.admin_keys:
                return problem(
                    403,
                    "this service has no admin keys: start it with TIM4REC_ADMIN_KEYS or its file",
                )
            return None if self.admin_keys.have(key) else _no_key("admin ")
        if is_open or path in self._open or path.startswith(self._open_below):
            return None
        return None if self.keys.have(key) else _no_key()


def _is_ours(host: bytes, hosts: frozenset[str]) -> bool:
    name = host_name(host.decode("latin-1"))
    return name in hosts or "*" in hosts or is_local(name)


def _no_key(kind: str = "") -> Response:
    return problem(401, REFUSAL.format(kind), headers=CHALLENGE)

"""Pages of other origins, which a browser lets ask for what a service says that they may (CORS,
https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

PREFLIGHT_S = 600
"""How long a browser need not ask again whether it may ask."""


def answering_other_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, for pages of these origins too. It stands before keys are asked for, which
    a browser does not send when it asks whether it may; that question goes no further."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT", "DELETE"),
        allow_headers=("Content-Type", "X-API-Key", "X-Request-ID"),
        expose_headers=("X-Request-ID", "Retry-After", "Server-Timing"),
        max_age=PREFLIGHT_S,
    )

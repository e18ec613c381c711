"""The OTEL_* variables that may hold secrets, read before the exporter reads them: what that can't
read, it writes into the log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
_HEADER = re.compile(r"[!#$%&'*+\-.0-9A-Z^_`a-z|~]+\s*=[\x20\x21\x23-\x3a\x3c-\x5b\x5d-\x7e]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check(environment: Mapping[str, str]) -> None:
    """Raises ValueError, one line that names the variable and has no part of its value."""
    for name in _ENDPOINTS:
        if not _is_endpoint(environment.get(name) or "http://localhost"):
            raise ValueError(
                f"{name} can't be read: give http://HOST:PORT, with special characters of a user "
                "and a password percent-encoded"
            )
    for name in _HEADERS:
        headers = [one.strip() for one in (environment.get(name) or "").split(",")]
        if not all(_HEADER.fullmatch(one) and not _CONTROL.search(unquote(one))
                   for one in headers if one):  # fmt: skip
            raise ValueError(
                f"{name} can't be read: give NAME=VALUE, with commas between several, values "
                "percent-encoded"
            )


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    odd = "@" in parts.path + parts.query or parts.fragment or _CONTROL.search(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not odd

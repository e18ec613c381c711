"""Whether a server could listen on a port, said before anything is done."""

from __future__ import annotations

from contextlib import suppress

from cli.console import CommandError
from service.listeners import AddressError, bound


def require_free_port(
    port: int, host: str = "127.0.0.1", another: str = "make run PORT={}"
) -> None:
    """Raise CommandError unless a server could listen there now. `another`: how to take another
    port."""
    if not 1 <= port <= 65535:
        raise CommandError(f"PORT={port} is no port: take one between 1 and 65535")
    try:
        _try(port, host)
    except AddressError as error:
        free = _free_port(port, host) if error.in_use else None
        hint = "" if free is None else f", for instance: {another.format(free)}"
        raise CommandError(f"{error}{hint}") from None


def _try(port: int, host: str) -> None:
    for listener in bound(host, port):
        listener.close()


def _free_port(port: int, host: str) -> int | None:
    for other in range(port + 1, min(port + 100, 65536)):
        with suppress(AddressError):
            _try(other, host)
            return other
    return None

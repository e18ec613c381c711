"""Names, addresses and paths by which a service is asked, as settings and requests give them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

PREFIX = r"(/[A-Za-z0-9._~-]+)*"
"""A path under which a service is shown, as a regular expression."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def host_name(host: str) -> str:
    """A host without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def is_local(name: str) -> bool:
    """Whether a host's name is an address, which no name server can make up, or `localhost`."""
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def networks(addresses: Iterable[str]) -> tuple[Network, ...] | None:
    """Addresses and networks; None: all there are (`*`).

    Raises:
        ValueError: one is neither.
    """
    given = tuple(addresses)
    if "*" in given:
        return None
    return tuple(ipaddress.ip_network(one, strict=False) for one in given)

"""Names, addresses and paths by which a service is asked, as settings and requests give them."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

PREFIX = r"(/[A-Za-z0-9._~-]+)*"
"""A path under which a service is shown, as a regular expression."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")
_HOST = re.compile(r"(?:\[([0-9a-f:.%a-z]*)\]|([^:\[\]]*))(?::[0-9]*)?")


def host_name(host: str) -> str:
    """A host without its port, in lower case; as it is, where it is none with a port."""
    host = host.strip().lower()
    found = _HOST.fullmatch(host)
    return host if found is None else found[1] or found[2] or ""


def is_origin(text: str) -> bool:
    """Whether a browser would name a page's origin so: in lower case, without a default port."""
    return bool(_ORIGIN.fullmatch(text)) and not _DEFAULT_PORT.fullmatch(text)


def is_local(name: str) -> bool:
    """Whether a host's name is an address, which no name server can make up, or `localhost`."""
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether no other machine reaches it; a name without an address is nobody's either."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    found_at = (ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found)
    return all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in found_at)


def networks(addresses: Iterable[str]) -> tuple[Network, ...] | None:
    """Addresses and networks; None: all there are (`*`).

    Raises:
        ValueError: one is neither.
    """
    given = tuple(addresses)
    if "*" in given:
        return None
    return tuple(ipaddress.ip_network(one, strict=False) for one in given)

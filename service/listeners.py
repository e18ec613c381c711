"""The sockets that a service listens on."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_FIX = "give 127.0.0.1, ::1, 0.0.0.0 (all of IPv4), :: (all of IPv6 and IPv4) or another of its own"


class AddressError(OSError):
    """The address can't be listened on. One line, with the fix.

    Attributes:
        in_use: something else listens there.
    """

    def __init__(self, line: str, *, in_use: bool = False) -> None:
        super().__init__(line)
        self.in_use = in_use


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets for a host's addresses on this machine, of which a name may have several.

    They do not listen yet: until a process can answer, clients are refused and not kept waiting.
    `::` takes connections of IPv4, too.

    Raises:
        AddressError: the host has no address here, or the port can't be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError):
        raise AddressError(
            f"host {host}: neither an address nor a name that is known; {_FIX}"
        ) from None
    listeners: list[socket.socket] = []
    with ExitStack() as undone:
        for family, address in dict.fromkeys(
            (family, address) for family, _, _, _, address in found
        ):
            try:
                listener = undone.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    alone = address[0] != "::"
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
                listener.bind(address)
            except OSError as error:
                if error.errno in _NOT_HERE:
                    continue
                raise _refused(host, port, error) from None
            listeners.append(listener)
        if not listeners:
            raise AddressError(f"host {host}: no address of this machine; {_FIX}")
        undone.pop_all()
    return listeners


def _refused(host: str, port: int, error: OSError) -> AddressError:
    if error.errno == errno.EADDRINUSE:
        line = f"port {port} is in use: stop what listens there, or take another one"
        return AddressError(line, in_use=True)
    return AddressError(f"port {port} of host {host} can't be used: {error.strerror}")

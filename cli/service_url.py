"""The URL of a service: where one listens, and what a command is told to ask."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote

from cli.console import CommandError

_HOST = re.compile(r"(?:(?P<name>[\w.-]+)|\[(?P<v6>[\w:.%]+)\])(?::(?P<port>\d*))?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True)
class ServiceUrl:
    """A URL that was given to a command.

    Attributes:
        base: it, without user and password.
        login: those, for what stands in front of the service; None: there are none.
    """

    base: str
    login: tuple[str, str] | None = None

    @classmethod
    def parse(cls, url: str) -> ServiceUrl:
        """Raises CommandError, one line without any part of the URL: it is none, or may be read in
        more than one way, as with a password that is not percent-encoded."""
        scheme, separator, rest = url.strip().partition("://")
        if not separator:
            scheme, rest = "http", scheme
        end = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
        login, at, host = rest[:end].rpartition("@")
        odd = "@" in rest[end:] or "#" in rest or _CONTROL.search(rest)
        if scheme not in ("http", "https") or odd or not _is_host(host):
            raise CommandError(
                "--url can't be read: give http://HOST:PORT or https://HOST, with special "
                "characters of a user and a password percent-encoded: / as %2F, # as %23, ? as "
                "%3F, @ as %40"
            )
        user, _, password = map(unquote, login.partition(":"))
        return cls(f"{scheme}://{host}{rest[end:]}", (user, password) if at else None)


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or 0) > 65535:
        return False
    try:
        if found["v6"] or found["name"].replace(".", "").isdecimal():
            ipaddress.ip_address(found["v6"] or found["name"])
    except ValueError:
        return False
    return True


def service_url(host: str, port: int | str) -> str:
    """Where a service on this machine is asked that listens on this host."""
    host = host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    if address.version == 6:
        host = f"[{host.replace('%', '%25')}]"
    return f"http://{host}:{port}"

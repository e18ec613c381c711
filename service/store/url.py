"""The URL of a store, read strictly.

A password whose `/`, `?` or `#` is not percent-encoded ends where nobody expects it: in the port,
the path, the options, and from there in messages. Such a URL is refused, without any part of it.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import RedisError

from service.store.errors import StoreError

UNREADABLE = (
    "the store URL can't be read; give redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss://... or "
    "unix:///PATH, with special characters of the user and the password percent-encoded: "
    "/ as %2F, # as %23, ? as %3F, @ as %40, % as %25"
)
OPTIONS = (
    "the options of the store URL (what follows its ?) can't be read; give NAME=VALUE, with & "
    "between several, as redis-py knows them, values percent-encoded"
)

_HOST = re.compile(r"([\w.-]*|\[[\w:.%]+\])(:\d*)?", re.ASCII)
_DATABASE = re.compile(r"(/\d*/?)?", re.ASCII)
_QUERY = re.compile(r"([a-z_]+=[^&]*(&|$))*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UrlError(StoreError, ValueError):
    """The URL can't be read. One line, without any part of it."""


class StoreUrl:
    """Where a store is, and how it is logged in to.

    Attributes:
        shown: without user, password and options.
        hosts: for each host, its own `shown` and what the client library takes.

    Raises:
        UrlError: it is none, or may be read in more than one way.
    """

    def __init__(self, url: str) -> None:
        scheme, separator, rest = url.partition("://")
        end = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
        login, _, hosts = rest[:end].rpartition("@")
        path, question, query = rest[end:].partition("?")
        if not separator or "#" in rest or _CONTROL.search(url):
            raise UrlError(UNREADABLE)
        if scheme in ("redis", "rediss"):
            sound = all(map(_HOST.fullmatch, hosts.split(","))) and "@" not in rest[end:]
            sound = sound and _DATABASE.fullmatch(path) is not None
        else:
            sound = scheme == "unix" and not hosts and path.startswith("/") and "@/" not in path
            sound = sound and "@" not in query
        if not sound:
            raise UrlError(UNREADABLE)
        if not _QUERY.fullmatch(query):
            raise UrlError(OPTIONS)
        self.shown = f"{scheme}://{hosts}{path}"
        self.hosts = [
            (
                f"{scheme}://{host}{path}",
                _options(f"{scheme}://{host}{path}{question}{query}", login),
            )
            for host in hosts.split(",")
        ]


def _options(url: str, login: str) -> dict[str, Any]:
    try:
        options: dict[str, Any] = {**parse_url(url)}
        opened = dict(options)
        opened.pop("connection_class", Connection)(**opened)  # it knows its options
    except (TypeError, ValueError, RedisError):
        raise UrlError(OPTIONS if "?" in url else UNREADABLE) from None
    user, _, password = login.partition(":")
    given = {"username": unquote(user), "password": unquote(password)}
    return options | {name: value for name, value in given.items() if value}

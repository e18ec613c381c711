"""What can go wrong between the service and its store. Each message is one line."""

from __future__ import annotations

import logging
import re
from typing import Any

_REPEATED = re.compile(r",? with args beginning with")
_USER = re.compile(r"\bUser .+? has no", re.IGNORECASE)


class StoreError(Exception):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError):
    """No answer in time: whether the commands were carried out is unknown. Retry."""


class NodeDown(StoreUnavailable):
    """The server has failed for a while; nothing was sent to it."""


class AcksMissed(StoreUnavailable):
    """Too few replicas have said in time that they have a write: it is there, and may be lost with
    the primary. Nothing was sent again. `reply`: what the primary has answered."""

    def __init__(self, message: str, reply: Any = None) -> None:
        super().__init__(message)
        self.reply = reply


class InvalidRequest(StoreError, ValueError):
    """The request itself cannot be stored; nothing was sent for it."""


class RecordDamaged(StoreError):
    """A user's record is not what the log wrote."""


class HistoryChanged(StoreError):
    """The mark to go on from is no longer in the user's history (erased, expired, restored), or
    that changes all the time."""


class RestoreNotEnded(StoreError):
    """A backup is being loaded into the store, or was not to the end."""


class EmbeddedStoreError(StoreError):
    """The embedded server could not be started, or not be had in its folder."""


def raised(*replies: Any) -> Any:
    """The first reply, once none is an error."""
    for reply in replies:
        if isinstance(reply, StoreError):
            raise reply
    return replies[0] if replies else None


def severity(error: StoreError) -> int:
    """At which level somebody logs what the store did not do: that it is lost it says itself."""
    return logging.INFO if isinstance(error, StoreUnavailable) else logging.WARNING


def one_line(error: BaseException) -> str:
    """What an error says, without what a server repeats in it of the login."""
    text = _REPEATED.split(" ".join(str(error).split()))[0]
    return _USER.sub("the user has no", text) or type(error).__name__

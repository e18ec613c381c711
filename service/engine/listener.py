"""What hears of the events that an engine logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.store.events import Event, NewEvent


class Listener(Protocol):
    """Is told in the event loop's thread, and must not take long."""

    def logged(self, user_id: str, event: NewEvent, time_ms: int) -> None:
        """This process has logged an event, whose effective time is `time_ms`."""

    def erased(self, user_id: str) -> None:
        """The user was erased, by this process or another; perhaps said more than once."""

    def removed(self, events: Sequence[Event]) -> None:
        """This process has deleted the record of an erased user with these events. Of all
        processes one is told, once, or none."""

"""An interaction to be stored."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from . import arguments


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Interaction:
    """One user interacted with one item.

    The event id makes sending it again safe, so it is drawn here, once: keep the object, or the id,
    until it has been stored.

    Attributes:
        timestamp: a datetime with a zone, ISO 8601, or epoch seconds; None: when the service stores
            it.
        kind: such as view or purchase; what follows is the service's setting.
        weight: how much it counts as popular, at most the service's setting `max_weight`.

    Raises:
        TypeError: an id or a time is of another type.
        ValueError: the timestamp is a datetime without a zone.
    """

    user_id: str
    item_id: str
    timestamp: datetime | float | str | None = None
    event_id: str = field(default_factory=_new_id)
    kind: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        for name in ("user_id", "item_id", "event_id"):
            arguments.text(name, getattr(self, name))
        arguments.time("timestamp", self.timestamp)

    def body(self) -> dict[str, Any]:
        """As the service takes it."""
        given = {
            "timestamp": arguments.time("timestamp", self.timestamp),
            "event_id": self.event_id,
            "kind": self.kind,
            "weight": self.weight,
        }
        named = {"user_id": self.user_id, "item_id": self.item_id}
        return named | {name: value for name, value in given.items() if value is not None}

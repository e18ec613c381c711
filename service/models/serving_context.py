"""What answers requests whichever model does: the parts that the models of a process share."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.catalogue.cursor import Seal
from service.catalogue.item_store import ItemStore
from service.engine.exactness import LATEST
from service.engine.listener import Listener
from service.feedback.item_counts import ItemCounts
from service.feedback.outcomes import Outcomes
from service.feedback.popularity import Popularity
from service.lifecycle import Drain
from service.live.live_evidence import LiveEvidence
from service.settings import Settings
from service.store.event_log import EventLog


@dataclass(frozen=True, eq=False)
class ServingContext:
    """Attributes:
    device: where models compute, as torch names it.
    records: of items.
    outcomes: None: they are not counted.
    item_counts: of items of which little is known; None: nothing is explored.
    live: what has happened since training; None: it is not kept.
    listeners: hear of the events that are logged.
    seal: of the cursors of lists that are gone on with.
    differences: the latest found of the process's resident states.
    """

    settings: Settings
    device: str
    log: EventLog
    records: ItemStore
    popularity: Popularity
    outcomes: Outcomes | None
    item_counts: ItemCounts | None
    live: LiveEvidence | None
    listeners: Sequence[Listener]
    seal: Seal
    drain: Drain
    differences: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))

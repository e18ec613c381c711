"""What events do to a user's row in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.kinds import KindRules
from service.catalogue.ask import RECENT, UNKNOWN
from service.store.events import Event


@dataclass(frozen=True)
class EventEffects:
    """Told by the rules of the events' kinds, and by the items that the model knows.

    Attributes:
        vocabulary: the indices of those items, by their ids.
    """

    kinds: KindRules
    vocabulary: Mapping[str, int]

    def steps(self, event: Event) -> bool:
        """Whether the event would move the state, if the model knew its item."""
        return event.kind is None or self.kinds.steps(event.kind)

    def moves(self, event: Event) -> bool:
        """Whether the event moves the state."""
        return self.steps(event) and event.item_id in self.vocabulary

    def known(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """Item and time, ms, of the events that move the state."""
        return [(self.vocabulary[e.item_id], e.time_ms) for e in events if self.moves(e)]

    def hidden(self, events: Sequence[Event]) -> list[int]:
        """The items that these events hide."""
        return [
            self.vocabulary[event.item_id]
            for event in events
            if event.kind is not None
            and self.kinds.hides(event.kind)
            and event.item_id in self.vocabulary
        ]

    def recent(self, before: tuple[str, ...], events: Sequence[Event]) -> tuple[str, ...]:
        """`Row.recent` after these events, from what it was `before` them."""
        stepped = (event.item_id for event in reversed(events) if self.steps(event))
        return (*stepped, *before)[:RECENT]

    def unknown(self, before: tuple[str, ...], events: Sequence[Event]) -> tuple[str, ...]:
        """`Row.unknown` after these events, from what it was `before` them."""
        new = [e.item_id for e in reversed(events) if self.steps(e) and not self.moves(e)]
        return tuple(dict.fromkeys((*new, *before)))[:UNKNOWN] if new else before

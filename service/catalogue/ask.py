"""What one request wants ranked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from model.gaps import UNKNOWN_TIME
from service.catalogue.choice import Choice
from service.catalogue.ranking import NO_ITEMS
from service.catalogue.view import Selection

RECENT = 20
"""Most of the items that a user had last, of which the ids are at hand: those that the live layer
looks at, and more."""
UNKNOWN = 1000
"""Most of the items that a user has had and the model does not know, of which the ids are at
hand."""


@dataclass(frozen=True, eq=False)
class Ask:
    """Items are rows of the catalogue.

    Attributes:
        k: how many, at most.
        hidden: what must not be returned.
        seen: what the user has had and may be given again, with another score for it.
        candidates: what only may be returned, each looked at; None: anything.
        choice: what the list must be beside good; None: nothing.
        recent: ids of the last RECENT items that the user had, newest first, in the catalogue or
            not.
        at_ms: the time recommended for, UNKNOWN_TIME where not known.
        live: what has happened since the training counts.
    """

    k: int
    hidden: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)
    seen: NDArray[np.int32] = field(default_factory=lambda: NO_ITEMS)
    candidates: NDArray[np.int32] | None = None
    choice: Choice | None = None
    recent: tuple[str, ...] = ()
    at_ms: int = UNKNOWN_TIME
    live: bool = True

    @property
    def selection(self) -> Selection | None:
        """What only may be returned; None: anything."""
        return None if self.choice is None else self.choice.selection

    def of_user(
        self,
        seen: NDArray[np.int32],
        hidden: NDArray[np.int32],
        recent: tuple[str, ...],
        at_ms: int,
        *,
        exclude_seen: bool,
    ) -> Ask:
        """The same for somebody who has had `seen`, and is not given what is `hidden`."""
        parts = [self.hidden, hidden, seen] if exclude_seen else [self.hidden, hidden]
        parts = [part for part in parts if len(part)]
        hidden = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else NO_ITEMS
        seen = NO_ITEMS if exclude_seen else seen
        return Ask(
            self.k,
            hidden,
            seen,
            self.candidates,
            self.choice,
            recent,
            at_ms,
            self.live,
        )

    def of_depth(self, k: int) -> Ask:
        """The same for another number of items."""
        if k == self.k:
            return self
        return Ask(  # `replace` takes seven times as long
            k,
            self.hidden,
            self.seen,
            self.candidates,
            self.choice,
            self.recent,
            self.at_ms,
            self.live,
        )

    def searches(self) -> list[Ask]:
        """The lists that the answer is made of: none where there are candidates, else the best
        items and, if some are promoted, the best of those."""
        if self.candidates is not None:
            return []
        choice = self.choice
        if choice is None:
            return [self]
        best = self.of_depth(choice.depth(self.k))
        if choice.promoted is None:
            return [best]
        return [best, replace(self, choice=Choice(choice.promoted))]

"""What retrieval knows of the catalogue at one moment, and what one request may be given of it.

Items are rows: 1 to V those of the model's vocabulary, then those that came after the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Flags = NDArray[np.bool_]
"""One for each row, with one for the padding's row 0 in front."""


@dataclass(frozen=True, eq=False)
class CatalogueView:
    """The rows there are. Never changed: a change of the catalogue makes a new one.

    Attributes:
        size: the number of rows, those of the vocabulary included.
        blocked: (size + 1,) what nobody may be given now; None: nothing.
        vectors: (size - V, D) of the rows after the vocabulary; None: there are none.
        noted: (size + 1,) what is blocked because nothing but events tells of it; None: nothing.
    """

    size: int
    blocked: Flags | None = None
    vectors: Tensor | None = None
    noted: Flags | None = None

    @property
    def plain(self) -> bool:
        """Whether there is nothing to see to."""
        return self.blocked is None and self.vectors is None

    @cached_property
    def noted_only(self) -> bool:
        """Whether all rows after the vocabulary are of noted items: their vectors are zeros."""
        newer = 0 if self.vectors is None else len(self.vectors)
        return self.noted is not None and bool(self.noted[len(self.noted) - newer :].all())

    @cached_property
    def open(self) -> Flags:
        """(size + 1,) what may be given to somebody."""
        found = np.ones(self.size + 1, np.bool_) if self.blocked is None else ~self.blocked
        found[0] = False
        return found

    @cached_property
    def open_live(self) -> Flags:
        """(size + 1,) `open`, and what was noted."""
        return self.open if self.noted is None else self.open | self.noted


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows that a request may be given, if they are not blocked; no rows after the last flag.

    warnings: of names and values that were asked for and that no item has.
    """

    allowed: Flags
    warnings: tuple[str, ...] = ()

    def on(self, view: CatalogueView) -> Flags:
        """(view.size + 1,) what of this view the request may be given."""
        return self.of(view.open)

    def of(self, flags: Flags) -> Flags:
        """Which of the rows with a flag are selected; as long as `flags`."""
        rows = min(len(self.allowed), len(flags))
        if rows == len(flags):
            return self.allowed[:rows] & flags
        found = np.zeros(len(flags), np.bool_)
        np.logical_and(self.allowed, flags[:rows], out=found[:rows])
        return found

    def __and__(self, other: Selection) -> Selection:
        rows = min(len(self.allowed), len(other.allowed))
        return Selection(self.allowed[:rows] & other.allowed[:rows])

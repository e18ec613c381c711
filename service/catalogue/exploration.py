"""Some places of a list for items of which little is known, chosen by Thompson sampling: each has a
chance as far as it may be the one that users take to most (Chapelle and Li, 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView, Flags

WELL_SHOWN = 200
"""An item that was shown so often is known."""
WELL_TRAINED = 10
"""So is one with so many interactions in the training part."""
DRAWN = 200
"""Of more candidates, so many at random are looked at for one list."""


def seed_of(user_id: str, version: int, now_ms: int) -> int:
    """(64 bits) the same for a minute, as long as the user does nothing."""
    text = f"{user_id}\0{version}\0{now_ms // 60_000}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


class Exploration:
    """Gives places to items that are newer than the model, or were rare in its training, until they
    have been shown WELL_SHOWN times.

    Args:
        share: of a list's places, on average.
        counts: (V,) interactions in the training part.
    """

    def __init__(self, share: float, counts: Sequence[int] | NDArray[Any]) -> None:
        self._share, self._trained = share, len(counts)
        rare = np.asarray(counts) < WELL_TRAINED
        self._is_new: Flags = np.concatenate([[False], rare, [True]])  # the last: of all newer rows
        self._rare = np.flatnonzero(self._is_new[:-1])
        self.know([])

    def know(self, numbers: Sequence[tuple[int, int, int]]) -> None:
        """How often items were shown and taken: (row, shown, taken) of those that were at all."""
        rows, shown, taken = (np.array([one[n] for one in numbers], np.int64) for n in range(3))
        # The last is that of all rows after it.
        self._shown = np.zeros(int(rows.max(initial=0)) + 2, np.int64)
        self._taken = np.zeros(len(self._shown), np.int64)
        self._shown[rows], self._taken[rows] = shown, np.minimum(taken, shown)
        average = (1 + self._taken.sum()) / (2 + self._shown.sum())
        self._not_taken = float(1 / average - 1)

    def little_known(self, rows: NDArray[np.int64]) -> Flags:
        """(len(rows),) of which of them little is known."""
        new = self._is_new[np.minimum(rows, self._trained + 1)]
        flags: Flags = new & (self._shown[self._places(rows)] < WELL_SHOWN)
        return flags

    def arrange(self, best: Ranking, ask: Ask, view: CatalogueView, seed: int) -> Ranking:
        """The best items of an answer to `ask`, some of them replaced, the last ones first to go.

        An item that was given a place is scored as the one after it. Promoted items keep theirs.
        """
        number = self._number(len(best.items), seed)
        if not number:
            return best
        free = self._free(best, ask)
        draw = np.random.default_rng(seed)
        chosen = self._chosen(self._candidates(best, ask, view), min(number, len(free)), draw)
        explored = np.zeros(len(best.items), np.bool_)
        explored[draw.choice(free, len(chosen), replace=False)] = True
        own = ~explored[free]
        source = free[np.cumsum(own) - own]
        items, scores = best.items.copy(), best.scores.copy()
        items[free], scores[free] = best.items[source], best.scores[source]
        items[explored] = chosen
        return replace(best, items=items, scores=scores, explored=explored)

    def _number(self, k: int, seed: int) -> int:
        """How many of k places: the share's whole part, and one more as often as makes it up."""
        whole, part = divmod(self._share * k, 1)
        return int(whole) + (seed < part * 2**64)

    def _free(self, best: Ranking, ask: Ask) -> NDArray[np.int64]:
        """The places that no promotion has been promised."""
        choice, places = ask.choice, range(len(best.items))
        if choice is None or choice.promoted is None:
            return np.array(places, np.int64)
        return np.array(
            [place for place in places if not choice.is_promised(choice.places + place)], np.int64
        )

    def _candidates(self, best: Ranking, ask: Ask, view: CatalogueView) -> NDArray[np.int64]:
        """The rows of which little is known and that the answer might have."""
        selection = ask.selection
        allowed = view.open_live.copy() if selection is None else selection.of(view.open_live)
        for taken in (best.items, ask.hidden, ask.seen):
            allowed[taken] = False
        newer = np.arange(self._trained + 1, view.size + 1)
        rows: NDArray[np.int64] = np.concatenate([self._rare, newer])
        return rows[allowed[rows] & self.little_known(rows)]

    def _chosen(
        self, rows: NDArray[np.int64], number: int, draw: np.random.Generator
    ) -> NDArray[np.int64]:
        """Those whose rates of being taken are highest, each drawn from what it may be: of a Beta
        distribution, whose mean is the average rate before the item was shown."""
        if len(rows) > DRAWN:
            rows = draw.choice(rows, DRAWN, replace=False)
        places = self._places(rows)
        shown, taken = self._shown[places], self._taken[places]
        rates = draw.beta(1 + taken, self._not_taken + shown - taken)
        return rows[np.argsort(-rates, kind="stable")[:number]]

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the rows' numbers are."""
        return np.minimum(rows, len(self._shown) - 1)

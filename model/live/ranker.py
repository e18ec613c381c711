"""Answers requests by the model's best items and the evidence together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from model.live import ranking
from model.live.counting import HALF_LIVES_MS, PAIRS_HALF_LIFE_MS, POPULAR, RECENT, TOTAL
from model.live.evidence import Evidence
from model.live.mixture import Mixture
from model.live.tables import Items, Requests, Scratch

LISTED = 50
"""N, how many of the model's best items are candidates."""
NO_ROWS = np.zeros(0, np.int32)
AT_ONCE = 16
"""Requests that are ranked in one go: events that are to be counted wait for its end."""

UNCOUNTED = {
    **dict.fromkeys((ranking.NEAR, ranking.AFTER, ranking.VISIT), np.log2(ranking.LEAST)),
    **dict.fromkeys(range(ranking.POPULAR, ranking.AGE), ranking.LEAST_POPULARITY),
    ranking.AGE: np.log2(ranking.LEAST_DAYS),
    ranking.LIKE_RECENT: 0.0,
    ranking.LIKE_QUERY: 0.0,
}
"""The features that depend on what is counted, of an item of which nothing is."""

Rows = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


class Request(NamedTuple):
    """One request. query: (D), None: the model knows nothing of the user; listed, scores: rows that
    the model ranks highest, best first; recent: ids of the last items, newest first; hidden: rows
    not to be returned; k: how many are wanted."""

    query: Float32s | None
    listed: Rows
    scores: Float32s
    recent: Sequence[str]
    hidden: npt.NDArray[np.int32]
    k: int


class Features(NamedTuple):
    """Of one request: candidates' rows (C), features (F, C), context (X)."""

    rows: Rows
    features: Float32s
    context: Float32s


class LivePart(NamedTuple):
    """What the evidence does for a candidate. share: its score less what it would be had nothing
    been counted of it; item_id: of the user's last items, the one that it was had near most; None:
    near none."""

    share: float
    item_id: str | None


class LiveRanker:
    """Not for two threads at once.

    Args:
        evidence: gives the one there is now.
        vectors: (V + 1, D) of the model's items, row 0 the padding's.
        row_of: an item's row in the catalogue, 1 to V those of the model; None: it has none, and
            is not returned.
        n_inputs: rows up to it move the model's states; None: up to V.
    """

    def __init__(
        self,
        evidence: Callable[[], Evidence],
        vectors: Float32s,
        row_of: Callable[[str], int | None],
        mixture: Mixture,
        n_inputs: int | None = None,
    ) -> None:
        self.mixture = mixture
        self._n_inputs = len(vectors) - 1 if n_inputs is None else n_inputs
        self._current, self._vectors, self._row_of = evidence, vectors, row_of
        self._evidence = evidence()
        self._begin(self._evidence)

    def _begin(self, evidence: Evidence) -> None:
        self._evidence, self._looked_up, self._n_rows = evidence, 0, 0
        self._without_row: list[int] = []
        self._rows_of = np.zeros(0, np.int32)
        self._numbers_of = np.full(len(self._vectors), -1, np.int32)
        self._scratch = Scratch(
            np.zeros((0, 4), np.float32),
            np.zeros((0, self._vectors.shape[1]), np.int8),
            np.zeros(0),
            np.zeros(len(self._vectors), np.int8),
            np.zeros((len(ranking.FEATURES), 0), np.float32),
            np.zeros(0, np.int32),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
        )

    @property
    def n_events(self) -> int:
        """How many the evidence has observed."""
        return self._current().n_events

    def warm_up(self) -> None:
        """Compiles what `best` needs."""
        empty = Request(None, np.zeros(0, np.int64), np.zeros(0, np.float32), (), NO_ROWS, 1)
        self.best([empty], np.zeros(len(self._vectors), np.bool_))

    def beside(
        self, item_id: str, k: int, open_rows: npt.NDArray[np.bool_]
    ) -> tuple[Rows, Float32s]:
        """The items that are had most often near this one, with their cosines, best first."""
        evidence = self._current()
        with evidence.lock:
            number = evidence.number(item_id)
            if number is None:
                return np.zeros(0, np.int64), np.zeros(0, np.float32)
            counts = evidence.counts
            others = counts.neighbours[number]
            others = others[others >= 0]
            together = counts.together[number, : len(others)]
            totals = counts.stats[others, TOTAL] + ranking.SHRINKAGE
            cosines = together / np.sqrt(totals * (counts.stats[number, TOTAL] + ranking.SHRINKAGE))
            rows = np.array([self._row_of(evidence.item_ids[other]) or 0 for other in others])
        left = (rows > 0) & (rows < len(open_rows))
        rows, cosines = rows[left].astype(np.int64), cosines[left]
        rows, cosines = rows[open_rows[rows]], cosines[open_rows[rows]]
        order = np.lexsort((rows, -cosines))[:k]
        return rows[order], cosines[order].astype(np.float32)

    def best(
        self, requests: Sequence[Request], open_rows: npt.NDArray[np.bool_]
    ) -> list[tuple[Rows, Float32s]]:
        """The best items of each request, with their scores.

        Args:
            open_rows: (R + 1) which rows may be returned.
        """
        found: list[tuple[Rows, Float32s]] = []
        for begin in range(0, len(requests), AT_ONCE):
            found += self._best(requests[begin : begin + AT_ONCE], open_rows)
        return found

    def _best(
        self, requests: Sequence[Request], open_rows: npt.NDArray[np.bool_]
    ) -> list[tuple[Rows, Float32s]]:
        shape = (len(requests), max(1, *(request.k for request in requests)))
        rows, scores = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        sizes = np.zeros(len(requests), np.int64)
        with self._up_to_date(requests, open_rows) as evidence:
            packed = self._packed(requests)
            ranking.best(
                packed, evidence.counts, evidence.popular, evidence.newest_ms, HALF_LIVES_MS,
                PAIRS_HALF_LIFE_MS, self._items(open_rows), self._scratch, self.mixture.weights,
                self.mixture.alone, self.mixture.unseen, rows, scores, sizes,
            )  # fmt: skip
        return [(rows[b, :size], scores[b, :size]) for b, size in enumerate(sizes.tolist())]

    def features(self, request: Request, open_rows: npt.NDArray[np.bool_]) -> Features:
        """What a mixture is to rank."""
        context = np.zeros(len(ranking.CONTEXT), np.float32)
        with self._up_to_date([request], open_rows) as evidence:
            n = ranking.gather(
                0, self._packed([request]), evidence.counts, evidence.popular, evidence.newest_ms,
                HALF_LIVES_MS, PAIRS_HALF_LIFE_MS, self._items(open_rows), self._scratch, context,
            )  # fmt: skip
        scratch = self._scratch
        return Features(scratch.rows[:n].astype(np.int64), scratch.features[:, :n].copy(), context)

    def parts(
        self, request: Request, open_rows: npt.NDArray[np.bool_], rows: Rows
    ) -> dict[int, LivePart]:
        """Of those of these rows that are candidates."""
        found = self.features(request, open_rows)
        without = found.features.copy()
        for feature, value in UNCOUNTED.items():
            without[feature] = value
        shares = self._scores(found) - self._scores(found._replace(features=without))
        near = self._near(request.recent)
        return {
            row: LivePart(share, near.get(int(self._numbers_of[row])))
            for row, share in zip(found.rows.tolist(), shares.tolist(), strict=True)
            if row in rows
        }

    def _scores(self, found: Features) -> Float32s:
        if found.context[ranking.HAS_QUERY] or found.context[ranking.LENGTH]:
            return self.mixture.scores(found.features, found.context)
        popularity: Float32s = found.features[self.mixture.alone]
        return popularity

    def _near(self, recent: Sequence[str]) -> dict[int, str]:
        """By item, as the evidence counts them: of the last items, the one to which it owes most of
        the feature `near`."""
        evidence, found = self._evidence, dict[int, tuple[float, str]]()
        with evidence.lock:
            counts = evidence.counts
            for place, item_id in enumerate(recent[:RECENT]):
                source = evidence.number(item_id)
                if source is None:
                    continue
                away_ms = min(counts.touched[source] - evidence.newest_ms, 0)
                weight = ranking.RECENCY**place * 2.0 ** (away_ms / PAIRS_HALF_LIFE_MS)
                weight /= np.sqrt(counts.stats[source, TOTAL] + ranking.SHRINKAGE)
                neighbours, together = counts.neighbours[source], counts.together[source]
                for other, number in zip(neighbours.tolist(), together.tolist(), strict=True):
                    part = weight * number
                    if other >= 0 and part > found.get(other, (0.0, ""))[0]:
                        found[other] = part, item_id
        return {other: item_id for other, (_, item_id) in found.items()}

    def _items(self, open_rows: npt.NDArray[np.bool_]) -> Items:
        return Items(self._rows_of, self._numbers_of, self._vectors, open_rows, self._n_inputs)

    def _packed(self, requests: Sequence[Request]) -> Requests:
        """Under the evidence's lock, and up to date with it."""
        size = len(requests)
        wide = max(len(request.listed) for request in requests)
        listed = np.zeros((size, max(wide, 1)), np.int64)
        scores = np.zeros(listed.shape, np.float32)
        queries = np.zeros((size, self._vectors.shape[1]), np.float32)
        recent: list[str] = []
        ends = np.zeros(size, np.int64)
        for b, request in enumerate(requests):
            if request.query is not None:
                queries[b] = request.query
                listed[b, : len(request.listed)] = request.listed
                scores[b, : len(request.listed)] = request.scores
            recent += request.recent[:RECENT]
            ends[b] = len(recent)
        numbers = np.fromiter(self._evidence.numbers(recent), np.int32, len(recent))
        return Requests(
            queries,
            np.array([len(r.listed) > 0 and r.query is not None for r in requests]),
            listed,
            scores,
            numbers,
            self._known_rows(recent, numbers),
            ends,
            np.concatenate([request.hidden for request in requests]).astype(np.int32, copy=False),
            np.cumsum([len(request.hidden) for request in requests]),
            np.array([request.k for request in requests]),
        )

    def _known_rows(
        self, item_ids: Sequence[str], numbers: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32]:
        """Of items with these numbers in the evidence; 0 where the model does not know it."""
        rows = self._rows_of[numbers]
        for place in np.flatnonzero(numbers < 0).tolist():
            rows[place] = self._row_of(item_ids[place]) or 0
        rows[rows >= len(self._vectors)] = 0
        return rows

    @contextmanager
    def _up_to_date(
        self, requests: Sequence[Request], open_rows: npt.NDArray[np.bool_]
    ) -> Iterator[Evidence]:
        """The evidence, locked."""
        evidence = self._current()
        if evidence is not self._evidence:
            self._begin(evidence)
        with evidence.lock:
            self._catch_up(max(len(request.listed) for request in requests), len(open_rows))
            yield evidence

    def _catch_up(self, listed: int, n_rows: int) -> None:
        """Looks up the rows of items that are new in the evidence, and makes room: an index beyond
        it would not be noticed. Under the evidence's lock."""
        evidence = self._evidence
        if len(self._numbers_of) < n_rows:
            self._numbers_of = _longer(self._numbers_of, 2 * n_rows, -1)
        size = len(evidence.counts.stats)
        scratch = self._scratch
        if len(self._rows_of) < size:
            self._rows_of = _longer(self._rows_of, size, 0)
            scratch = scratch._replace(
                sums=np.zeros((size, 4), np.float32),
                around=_longer(scratch.around, size, 0),
                around_changes=_longer(scratch.around_changes, size, 0),
            )
        without: list[int] = []
        if n_rows != self._n_rows:  # what had no row may have one now
            without, self._without_row, self._n_rows = self._without_row, [], n_rows
        for number in (*without, *range(self._looked_up, len(evidence.item_ids))):
            row = self._row_of(evidence.item_ids[number])
            if row is None or row >= n_rows:
                self._without_row.append(number)
            else:
                self._rows_of[number] = row
                self._numbers_of[row] = number
        self._looked_up = len(evidence.item_ids)
        most = listed + 2 * POPULAR + RECENT * evidence.rules.neighbours
        if len(scratch.logs) < most or len(scratch.marks) < n_rows:
            scratch = scratch._replace(
                marks=np.zeros(max(len(scratch.marks), 2 * n_rows), np.int8),
                features=np.zeros((len(ranking.FEATURES), most), np.float32),
                rows=np.zeros(most + 1, np.int32),
                numbers=np.zeros(most + 1, np.int32),
                logs=np.zeros(most, np.float32),
            )
        self._scratch = scratch


def _longer(values: npt.NDArray[T], size: int, fill: int) -> npt.NDArray[T]:
    longer = np.full((size, *values.shape[1:]), fill, values.dtype)
    longer[: len(values)] = values
    return longer

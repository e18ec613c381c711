"""Random requests to rank, and what is known of their candidates, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.live.counting import FIRST_MS, POPULARITY, TOTAL
from model.live.evidence import Evidence, EvidenceRules
from model.live.mixture import Mixture, Weights
from model.live.ranker import LiveRanker, Request
from model.live.ranking import CONTEXT, FEATURES
from tests.model.live.event_sequences import (
    DAY_MS,
    HALF_LIFE_MS,
    POPULARITY_HALF_LIVES_MS,
    random_events,
)

WIDTH = 5


@dataclass
class Situation:
    """Evidence of items i0, i1, ...; a model of some of them and of others, m0, m1, ..., rows 1 to
    V; a catalogue that has a row for some of the rest."""

    evidence: Evidence
    rows: dict[str, int]
    vectors: npt.NDArray[np.float32]
    open: npt.NDArray[np.bool_]

    @classmethod
    def drawn(cls, rng: np.random.Generator, *, events: int | None = None) -> Situation:
        evidence = Evidence(EvidenceRules(neighbours=int(rng.choice([1, 4, 32])), users=9))
        n_events = int(rng.integers(1, 200)) if events is None else events
        evidence.observe(random_events(rng, n_events, users=12, items=60))
        ids = [f"i{n}" for n in rng.permutation(60)]
        n_known = int(rng.integers(1, 30))
        known = [*ids[:n_known], "m0", "m1", "m2"]
        rng.shuffle(known)
        rest = ids[n_known : n_known + int(rng.integers(31))]
        rows = {item: row for row, item in enumerate((*known, *rest), 1)}
        vectors = rng.normal(size=(len(known) + 1, WIDTH)).astype(np.float32)
        vectors[0] = 0
        is_open = rng.random(len(rows) + 1) < 0.8
        is_open[0] = False
        return cls(evidence, rows, vectors, is_open)

    def ranker(self, mixture: Mixture) -> LiveRanker:
        return LiveRanker(lambda: self.evidence, self.vectors, self.rows.get, mixture)

    def request(self, rng: np.random.Generator) -> Request:
        query = rng.normal(size=WIDTH).astype(np.float32)
        scores = self.vectors[1:] @ query
        listed = 1 + np.argsort(-scores)[: int(rng.integers(1, 9))]
        ids = [*self.rows, *(f"i{n}" for n in range(60)), "nobody had this"]
        recent = [ids[n] for n in rng.integers(len(ids), size=int(rng.choice([0, 1, 4, 14])))]
        hidden = rng.permutation(len(self.open))[: int(rng.integers(8))].astype(np.int32)
        known = bool(rng.random() < 0.7)
        return Request(
            query if known else None,
            listed if known else listed[:0],
            scores[listed - 1] if known else scores[:0],
            recent,
            hidden,
            int(rng.choice([1, 3, 10, 500])),
        )


def random_mixture(rng: np.random.Generator, hidden: int = 4) -> Mixture:
    shapes = (
        (len(FEATURES),), (len(FEATURES), len(CONTEXT)), (hidden, len(FEATURES)),
        (hidden, len(CONTEXT)), (hidden,), (hidden,),
    )  # fmt: skip
    weights = Weights(*(rng.normal(scale=0.3, size=s).astype(np.float32) for s in shapes))
    return Mixture(weights, unseen=float(rng.uniform(0, 3)))


class PlainFeatures:
    """The candidates of a request, by row, and its context."""

    def __init__(self, situation: Situation, request: Request) -> None:
        self.situation, self.request = situation, request
        self.evidence = situation.evidence
        self.numbers = {item: number for number, item in enumerate(self.evidence.item_ids)}
        self.recent = list(request.recent[:10])
        self.has_query = request.query is not None and len(request.listed) > 0
        self.mean = np.zeros(WIDTH)
        for back, item in enumerate(self.recent):
            row = self._known_row(item)
            if row:
                self.mean += 0.8**back * situation.vectors[row].astype(float)
        self.top = np.log(np.exp(request.scores.astype(float)).sum()) if self.has_query else 0.0
        given = [row for row in request.listed.tolist() if self._may_be_given(row)]
        last = request.scores[request.listed == given[-1]][0] if given else 0.0
        self.floor = last - self.top - 1 if given else -8.0
        self.by_row = {row: self._features(row) for row in self._candidates()}
        self.context = self._context()

    def _known_row(self, item: str) -> int:
        row = self.situation.rows.get(item, 0)
        return row if row < len(self.situation.vectors) else 0

    def _pairs(self, item: str, name: str) -> dict[str, float]:
        """An item's neighbours, with what is counted of them."""
        number = self.numbers.get(item)
        if number is None:
            return {}
        values = getattr(self.evidence.counts, name)[number].tolist()
        others = self.evidence.counts.neighbours[number].tolist()
        ids = self.evidence.item_ids
        return {ids[o]: value for o, value in zip(others, values, strict=True) if o >= 0}

    def _candidates(self) -> set[int]:
        named = {self.evidence.item_ids[n] for n in self.evidence.popular.flat if n >= 0}
        for item in self.recent:
            named |= set(self._pairs(item, "together"))
        rows = {self.situation.rows.get(item, 0) for item in named}
        if self.has_query:
            rows |= set(self.request.listed.tolist())
        return {row for row in rows if self._may_be_given(row)}

    def _may_be_given(self, row: int) -> bool:
        is_open = self.situation.open
        return row < len(is_open) and bool(is_open[row]) and row not in self.request.hidden

    def _near(self, item: str, name: str) -> float:
        found, now = 0.0, self.evidence.newest_ms
        for back, source in enumerate(self.recent):
            pairs = self._pairs(source, name)
            if item not in pairs:
                continue
            number = self.numbers[source]
            total = self.evidence.counts.stats[number, TOTAL]
            decay = 2.0 ** ((self.evidence.counts.touched[number] - now) / HALF_LIFE_MS)
            if name == "after":
                found += (back < 3) * 0.5**back * decay / (total + 1) * pairs[item]
            else:
                found += 0.8**back * decay / np.sqrt(total + 3) * pairs[item]
        return found

    def _features(self, row: int) -> npt.NDArray[np.float64]:
        vectors, query = self.situation.vectors.astype(float), self.request.query
        known = row < len(vectors)
        found = dict.fromkeys(FEATURES, 0.0)
        found["known"] = float(known)
        if self.has_query and row in self.request.listed:
            (place,) = np.flatnonzero(self.request.listed == row)
            found["model"], found["scored"] = self.request.scores[place] - self.top, 1.0
        elif self.has_query and known:
            found["model"], found["scored"] = self.floor, 1.0
        item = next(item for item, own in self.situation.rows.items() if own == row)
        number = self.numbers.get(item)
        total, first = (
            (0.0, self.evidence.newest_ms)
            if number is None
            else self.evidence.counts.stats[number, [TOTAL, FIRST_MS]]
        )
        found["near"] = np.log2(self._near(item, "together") / np.sqrt(total + 3) + 1e-3)
        found["visit"] = np.log2(self._near(item, "visit") / np.sqrt(total + 3) + 1e-3)
        found["after"] = np.log2(self._near(item, "after") + 1e-3)
        found["age"] = np.log2(max(self.evidence.newest_ms - first, 0) / DAY_MS + 0.02)
        for h, name in enumerate(("1d", "7d", "30d", "180d")):
            value = -np.inf
            if number is not None:
                value = self.evidence.counts.stats[number, POPULARITY + h]
                value -= self.evidence.newest_ms / POPULARITY_HALF_LIVES_MS[h]
            found[f"popular_{name}"] = max(value, -6.64)
        around = np.zeros(WIDTH, np.float32)  # what is rounded must not be rounded before
        for other, together in self._pairs(item, "together").items():
            if self._known_row(other):
                around += np.float32(together) * self.situation.vectors[self._known_row(other)]
        around = np.rint(around * (127 / (np.linalg.norm(around) or np.float32(1)))) / 127.0
        found["like_recent"] = around @ self.mean / (np.linalg.norm(self.mean) + 1e-6)
        if self.has_query:
            found["like_query"] = around @ query / (np.linalg.norm(query) + 1e-6)
        return np.array(list(found.values()))

    def _context(self) -> npt.NDArray[np.float64]:
        unknown = [not self._known_row(item) for item in self.recent]
        listed = [row for row in self.request.listed.tolist() if self._may_be_given(row)]
        return np.array(
            [
                self.has_query,
                np.log2(1 + len(self.recent)),
                np.mean(unknown) if unknown else 0.0,
                bool(unknown and unknown[0]),
                self.by_row[listed[0]][0] if listed and self.has_query else 0.0,
            ],
            dtype=float,
        )

    def scores(self, mixture: Mixture) -> dict[int, float]:
        """By row."""
        weights = Weights(*(part.astype(float) for part in mixture.weights))
        slopes = weights.linear + weights.by_context @ self.context
        bias = weights.hidden_context @ self.context + weights.bias
        unseen = set(self.situation.rows) - set(self.numbers)
        lifted = {self.situation.rows[item] for item in unseen}
        return {
            row: float(slopes @ own + weights.out @ np.maximum(weights.hidden @ own + bias, 0))
            + mixture.unseen * (row in lifted)
            for row, own in self.by_row.items()
        }

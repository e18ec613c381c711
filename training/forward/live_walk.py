"""A log walked event by event by the live layer, as a service goes through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import TiM4Rec
from model.live.counting import RECENT
from model.live.evidence import Evidence, EvidenceRules, Observed, user_key
from model.live.mixture import UNFITTED, Mixture
from model.live.ranker import LISTED, Features, Float32s, LiveRanker, Request, Rows
from training.dataset import Int64s
from training.forward.events import Events, KnownHistories, queries_at
from training.loss import scores_at_once
from training.metrics import MISS

RULES = EvidenceRules()
DEPTH = 50
"""How many items are asked for: a target beyond them is a miss."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ModelLists:
    """What a model says at events: queries (T, D), and its best items that the user has not had,
    rows and scores (T, N), 0 where there are fewer; known: (T) whether it knows something of the
    user."""

    queries: Float32s
    known: Bools
    listed: Rows
    scores: Float32s

    @classmethod
    @torch.inference_mode()
    def of(
        cls, events: Events, rows: Int64s, model: TiM4Rec, item_ids: Sequence[str], times: Int64s
    ) -> ModelLists:
        """times: (T) ms, when each is asked for."""
        inputs = KnownHistories.of(events, rows, item_ids, model.config.n_items)
        queries = queries_at(model, inputs, times)
        wide = min(LISTED, model.n_scored)
        listed = np.zeros((len(rows), wide), np.int64)
        scores = np.zeros((len(rows), wide), np.float32)
        size = max(1, min(256, scores_at_once(model.device) // (model.n_scored + 1)))
        (some,) = np.nonzero(inputs.lengths)
        some = some[np.argsort(inputs.lengths[some], kind="stable")]
        for begin in range(0, len(some), size):
            batch = some[begin : begin + size]
            scores_BV: Tensor = model.scores(queries[batch])
            found = scores_BV.scatter(1, inputs.seen(batch), -torch.inf)
            best = found.topk(wide, dim=1)
            left = best.values.isfinite()
            listed[batch] = torch.where(left, best.indices, 0).numpy()
            scores[batch] = torch.where(left, best.values, 0.0).numpy()
        return cls(queries.numpy(), inputs.lengths > 0, listed, scores)

    def part(self, chosen: slice) -> ModelLists:
        return ModelLists(
            self.queries[chosen], self.known[chosen], self.listed[chosen], self.scores[chosen]
        )


class LiveWalk:
    """Evidence that has observed events of a log, and the rankings by it.

    A ranking knows of no event that was not observed, but for its user's own before the one that
    is asked about. Rows of the catalogue: 1 to V' the items that the model scores, then others in
    the order of their first event.
    """

    def __init__(
        self,
        events: Events,
        user_ids: Sequence[str],
        model: TiM4Rec,
        item_ids: Sequence[str],
        mixture: Mixture = UNFITTED,
        rules: EvidenceRules = RULES,
    ) -> None:
        self.events = events
        self.evidence = Evidence(rules)
        self._keys = [user_key(user_id) for user_id in user_ids]
        self._rank_by(model, item_ids, mixture)

    def replace_model(self, model: TiM4Rec, item_ids: Sequence[str]) -> None:
        """Goes on with another model, by the same evidence and mixture."""
        self._rank_by(model, item_ids, self.ranker.mixture)

    def _rank_by(self, model: TiM4Rec, item_ids: Sequence[str], mixture: Mixture) -> None:
        if len(item_ids) != model.n_scored:
            raise ValueError(f"{len(item_ids)} item ids for a model that scores {model.n_scored}")
        self._rows = {item: row for row, item in enumerate(item_ids, 1)}
        for item in self.evidence.item_ids:
            self._rows.setdefault(item, len(self._rows) + 1)
        known = self.events.item_ids
        self._row_of = np.array([self._rows.get(item, 0) for item in known], np.int32)
        self._open = np.ones(1 + len(item_ids) + len(known), np.bool_)
        self._open[0] = False
        new = 0 if model.scoring is None else model.scoring.n_new
        vectors = model.scoring_vectors[: 1 + len(item_ids) - new].detach().float().cpu().numpy()
        self.ranker = LiveRanker(
            lambda: self.evidence, vectors, self._rows.get, mixture, model.config.n_items
        )

    def observe(self, rows: Int64s) -> None:
        """Counts events, rows of the log."""
        events, ids = self.events, self.events.item_ids
        items = events.items[rows]
        for item in items[self._row_of[items] == 0].tolist():
            self._row_of[item] = self._rows.setdefault(ids[item], len(self._rows) + 1)
        self.evidence.observe(
            [
                Observed(self._keys[user], ids[item], time)
                for user, item, time in zip(
                    events.users[rows].tolist(),
                    items.tolist(),
                    events.times[rows].tolist(),
                    strict=True,
                )
            ]
        )

    def best(self, rows: Int64s, lists: ModelLists, k: int) -> Iterator[Rows]:
        """The k best items for the user of each event, just before it: catalogue's rows."""
        for begin in range(0, len(rows), 64):
            some = range(begin, min(begin + 64, len(rows)))
            requests = [self._request(int(rows[i]), lists, i, k) for i in some]
            for found, _ in self.ranker.best(requests, self._open):
                yield found

    def ranks(self, rows: Int64s, lists: ModelLists) -> Int64s:
        """The rank of each event's item, just before it: (T)."""
        found = np.full(len(rows), MISS, np.int64)
        for place, best in enumerate(self.best(rows, lists, DEPTH)):
            # An item without an event so far has row 0, which is never among the best.
            (at,) = np.nonzero(best == self.row_of(int(rows[place])))
            if len(at):
                found[place] = at[0] + 1
        return found

    def features(self, row: int, lists: ModelLists, place: int) -> Features:
        """The candidates just before an event, that of `lists` at `place`."""
        return self.ranker.features(self._request(row, lists, place, 1), self._open)

    def row_of(self, row: int) -> int:
        """The catalogue's row of an event's item, 0 for none yet."""
        return int(self._row_of[self.events.items[row]])

    def _request(self, row: int, lists: ModelLists, place: int, k: int) -> Request:
        events = self.events
        had = events.items[events.firsts[row] : row]
        hidden = self._row_of[had]
        recent = [events.item_ids[item] for item in had[-RECENT:][::-1].tolist()]
        known = lists.known[place]
        listed, scores = lists.listed[place], lists.scores[place]
        full = int(np.count_nonzero(listed))
        return Request(
            lists.queries[place] if known else None,
            listed[:full],
            scores[:full],
            recent,
            hidden[hidden > 0],
            k,
        )

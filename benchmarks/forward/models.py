"""Ranks of trained models in a walk forward: the states follow each event, the weights do not.

A user's queries at all events are computed in one parallel pass over the history, which equals
stepping. Items that the model does not know are left out of its input, and are misses as targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.forward.walk import Events, Walk
from benchmarks.ranks import ResultError
from model import UNKNOWN_TIME, TiM4Rec
from training.batches import gather_padded
from training.dataset import Histories, Int32s, Int64s
from training.loss import scores_at_once
from training.metrics import MISS

UNKNOWN, AFTER, BEFORE, AT = "unknown", "1 s after the last", "10 s before", "at the target's time"
NOTHING_KNOWN = 0
"""In place of a rank: the model knows nothing of the user's history."""

TOKENS = 1 << 14


@dataclass(frozen=True, slots=True)
class Served:
    """A model and the ids of its items: entry i is item i + 1."""

    model: TiM4Rec
    item_ids: Sequence[str]


def request_times(events: Events, rows: Int64s) -> dict[str, Int64s]:
    """When a recommendation is asked for before each event, by name: (T) ms each.

    The last interaction is the user's, of a known item or not. What has none is asked at the
    target's time.
    """
    target = events.times[rows]
    last = np.where(rows > events.firsts[rows], events.times[np.maximum(rows - 1, 0)], target)
    return {
        AFTER: last + 1000,
        BEFORE: np.maximum(last, target - 10_000),
        AT: target,
        UNKNOWN: np.full_like(target, UNKNOWN_TIME),
    }


def model_ranks(walk: Walk, by_period: Sequence[Served]) -> dict[str, Int64s]:
    """The rank (T) of each event's item, by request time; `NOTHING_KNOWN` where the user has
    no history that the model knows.

    Args:
        by_period: what is served in each period.

    Raises ResultError where a model has no query at each position (time path `sequence`).
    """
    asks = by_period[0].model.config.uses_request_time
    names = (AFTER, BEFORE, AT, UNKNOWN) if asks else (UNKNOWN,)
    found = {name: np.zeros(len(walk.rows), dtype=np.int64) for name in names}
    for served in {id(served): served for served in by_period}.values():
        periods = [p for p, other in enumerate(by_period) if other is served]
        chosen = np.flatnonzero(np.isin(walk.periods, periods))
        ranker = _Ranker(walk.events, walk.rows[chosen], served)
        times = request_times(walk.events, walk.rows[chosen])
        for name in names:
            found[name][chosen] = ranker.ranks(times[name])
    return found


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The interactions that a model knows, and where in them the events' histories lie.

    histories: all users', one after the other; starts, ends: (T), the history of event i is
    [starts[i], ends[i]); targets: (T), 0 where the model does not know the item.
    """

    histories: Histories
    starts: Int64s
    ends: Int64s
    targets: Int64s

    @classmethod
    def of(cls, events: Events, rows: Int64s, item_ids: Sequence[str]) -> _Inputs:
        index = {item: number for number, item in enumerate(item_ids, 1)}
        items = np.array([index.get(item, 0) for item in events.item_ids])[events.items]
        known = items > 0
        before = np.concatenate([[0], np.cumsum(known)])
        offsets = before[np.append(np.unique(events.firsts), len(known))]
        known_items: Int32s = items[known].astype(np.int32)
        histories = Histories(offsets, known_items, events.times[known])
        return cls(histories, before[events.firsts[rows]], before[rows], items[rows])

    @property
    def lengths(self) -> Int64s:
        return self.ends - self.starts


class _Ranker:
    def __init__(self, events: Events, rows: Int64s, served: Served) -> None:
        self.model = served.model.eval()
        if not self.model.causal:
            raise ResultError("a model of the time path `sequence` has no query at each position")
        self.inputs = _Inputs.of(events, rows, served.item_ids)

    @torch.inference_mode()
    def ranks(self, times: Int64s) -> Int64s:
        inputs, model = self.inputs, self.model
        queries = self._queries(times)
        found = np.full(len(times), NOTHING_KNOWN, dtype=np.int64)
        (some,) = np.nonzero(inputs.lengths)
        some = some[np.argsort(inputs.lengths[some], kind="stable")]
        size = max(1, min(256, scores_at_once(model.device) // (model.config.n_items + 1)))
        for begin in range(0, len(some), size):
            batch = some[begin : begin + size]
            seen, _ = gather_padded(inputs.histories, inputs.starts[batch], inputs.lengths[batch])
            targets = torch.from_numpy(inputs.targets[batch])[:, None]
            scores = model.scores(queries[batch]).scatter(1, torch.from_numpy(seen), -torch.inf)
            own = scores.gather(1, targets)  # -inf for an unknown item: the padding's
            rank = (~(scores[:, 1:] < own)).sum(1)
            missed = ~own[:, 0].isfinite()
            found[batch] = torch.where(missed, MISS, rank).numpy()
        return found

    def _queries(self, times: Int64s) -> Tensor:
        """The query (T, D) for each event, asked for at `times` (T); 0 without a history."""
        inputs = self.inputs
        queries = torch.zeros(len(times), self.model.item_embedding.embedding_dim)
        for batch in _passes(inputs):
            items, known_at = gather_padded(inputs.histories, batch.starts, batch.lengths)
            asked = np.full_like(known_at, UNKNOWN_TIME)
            asked[batch.lines, batch.places] = times[batch.events]
            out = self.model(*(torch.from_numpy(part) for part in (items, known_at, asked)))
            queries[batch.events] = out[batch.lines, batch.places]
        return queries


@dataclass(frozen=True, slots=True)
class _Pass:
    """Histories [starts, starts + lengths), (B) each, and the events whose queries they give: event
    events[i] in line lines[i] at position places[i]."""

    starts: Int64s
    lengths: Int64s
    events: Int64s
    lines: Int64s
    places: Int64s


def _passes(inputs: _Inputs) -> Iterator[_Pass]:
    """Batches of bounded size that have a position for every event with a history.

    A position is asked once in a line: events that follow one another without an interaction that
    the model knows between them are in different lines of the same history.
    """
    (some,) = np.nonzero(inputs.lengths)
    some = some[np.argsort(inputs.ends[some], kind="stable")]
    ends = inputs.ends[some]
    repeat = np.arange(len(some)) - np.searchsorted(ends, ends)
    lines = np.stack([repeat, inputs.starts[some]])
    distinct, line = np.unique(lines, axis=1, return_inverse=True)
    line = line.ravel()
    lengths = np.zeros(distinct.shape[1], dtype=np.int64)
    np.maximum.at(lengths, line, inputs.lengths[some])
    by_length = np.argsort(lengths, kind="stable")
    by_line = np.argsort(line, kind="stable")
    bounds = np.searchsorted(line[by_line], np.arange(len(lengths) + 1))
    begin = 0
    while begin < len(by_length):
        end = begin + 1
        while end < len(by_length) and (end - begin + 1) * lengths[by_length[end]] <= TOKENS:
            end += 1
        chosen = by_length[begin:end]
        parts = [by_line[bounds[number] : bounds[number + 1]] for number in chosen]
        events = some[np.concatenate(parts)]
        yield _Pass(
            starts=distinct[1][chosen],
            lengths=lengths[chosen],
            events=events,
            lines=np.repeat(np.arange(len(chosen)), [len(part) for part in parts]),
            places=inputs.lengths[events] - 1,
        )
        begin = end


def with_fallback(ranks: Mapping[str, Int64s], fallback: Int64s) -> dict[str, Int64s]:
    """`fallback` (T) where the model knows nothing of the user's history."""
    return {name: np.where(own == NOTHING_KNOWN, fallback, own) for name, own in ranks.items()}

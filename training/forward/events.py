"""A log's events in their users' histories, and a causal model's queries at each of them.

Names: N events, V items, T events that are asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import UNKNOWN_TIME, Recommender
from training.batches import gather_padded
from training.dataset import Histories, Int32s, Int64s
from training.interactions import Log
from training.tables import InputError

TOKENS = 1 << 14


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a log by user, then time, then place in the log: (N) each.

    users, items: from 0 on, items in the order of `item_ids` (V); times: ms; firsts: the row of the
    user's first event, so that a row's history is [firsts[row], row).
    """

    users: Int64s
    items: Int64s
    times: Int64s
    firsts: Int64s
    item_ids: list[str]

    @classmethod
    def of(cls, log: Log) -> Events:
        """Raises InputError where a time is not known."""
        times = log.frame["time_ms"].to_numpy().astype(np.int64)
        if (times == UNKNOWN_TIME).any():
            raise InputError("a walk forward in time needs the time of every interaction")
        users = log.frame["user_id"].rle_id().to_numpy().astype(np.int64)
        item_ids, items = np.unique(log.frame["item_id"].to_numpy(), return_inverse=True)
        firsts = np.searchsorted(users, users)
        return cls(users, items.astype(np.int64), times, firsts, item_ids.tolist())


@dataclass(frozen=True, slots=True)
class KnownHistories:
    """The interactions that a model has as input, and where in them the events' histories lie.

    histories: all users', one after the other; starts, ends: (T), the history of event i is
    [starts[i], ends[i]); targets: (T), 0 where the model does not score the item.
    scored, firsts, rows: the same of all interactions, those with items that are no input
    included; the item is 0 where it is not scored.
    """

    histories: Histories
    starts: Int64s
    ends: Int64s
    targets: Int64s
    scored: Histories
    firsts: Int64s
    rows: Int64s

    @classmethod
    def of(
        cls, events: Events, rows: Int64s, item_ids: Sequence[str], n_inputs: int
    ) -> KnownHistories:
        """item_ids: those that the model scores, of which the first `n_inputs` are its input."""
        index = {item: number for number, item in enumerate(item_ids, 1)}
        items = np.array([index.get(item, 0) for item in events.item_ids])[events.items]
        known = (items > 0) & (items <= n_inputs)
        before = np.concatenate([[0], np.cumsum(known)])
        bounds = np.append(np.unique(events.firsts), len(known))
        known_items: Int32s = items[known].astype(np.int32)
        return cls(
            Histories(before[bounds], known_items, events.times[known]),
            before[events.firsts[rows]],
            before[rows],
            items[rows],
            Histories(bounds, items.astype(np.int32), events.times),
            events.firsts[rows],
            rows,
        )

    def seen(self, chosen: Int64s) -> Tensor:
        """(B, L) the scored items that the users of these events had before them, 0 pads."""
        firsts = self.firsts[chosen]
        items, _ = gather_padded(self.scored, firsts, self.rows[chosen] - firsts)
        return torch.from_numpy(items)

    @property
    def lengths(self) -> Int64s:
        return self.ends - self.starts


@torch.inference_mode()
def queries_at(model: Recommender, inputs: KnownHistories, times: Int64s) -> Tensor:
    """The query (T, D) for each event, asked for at `times` (T) ms; 0 without a history."""
    queries = torch.zeros(len(times), model.item_embedding.embedding_dim)
    for batch in _passes(inputs):
        items, known_at = gather_padded(inputs.histories, batch.starts, batch.lengths)
        asked = np.full_like(known_at, UNKNOWN_TIME)
        asked[batch.lines, batch.places] = times[batch.events]
        out = model(*(torch.from_numpy(part) for part in (items, known_at, asked)))
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


def _passes(inputs: KnownHistories) -> Iterator[_Pass]:
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

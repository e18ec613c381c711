"""Ranks of trained models in a walk forward: the states follow each event, the weights do not.

A user's queries at all events are computed in one parallel pass over the history, which equals
stepping. Items that the model does not know are left out of its input, and are misses as targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model import UNKNOWN_TIME, TiM4Rec
from training.dataset import Int64s
from training.forward.events import Events, KnownHistories, queries_at
from training.forward.walk import Walk
from training.loss import scores_at_once
from training.metrics import MISS
from training.tables import InputError

UNKNOWN, AFTER, BEFORE, AT = "unknown", "1 s after the last", "10 s before", "at the target's time"
NOTHING_KNOWN = 0
"""In place of a rank: the model knows nothing of the user's history."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model and the ids of the items that it scores: entry i is item i + 1."""

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


def times_asked(served: Served) -> Sequence[str]:
    """Names of the request times that make a difference to a model."""
    asks = served.model.config.uses_request_time
    return (AFTER, BEFORE, AT, UNKNOWN) if asks else (UNKNOWN,)


def model_ranks(walk: Walk, by_period: Sequence[Served]) -> dict[str, Int64s]:
    """The rank (T) of each event's item, by request time; `NOTHING_KNOWN` where the user has
    no history that the model knows.

    Args:
        by_period: what is served in each period.

    Raises InputError where a model has no query at each position (time path `sequence`).
    """
    names = times_asked(by_period[0])
    found = {name: np.zeros(len(walk.rows), dtype=np.int64) for name in names}
    for served in {id(served): served for served in by_period}.values():
        periods = [p for p, other in enumerate(by_period) if other is served]
        chosen = np.flatnonzero(np.isin(walk.periods, periods))
        rows = walk.rows[chosen]
        times = request_times(walk.events, rows)
        for name in names:
            found[name][chosen] = ranks_at(walk.events, rows, served, times[name])
    return found


@torch.inference_mode()
def ranks_at(events: Events, rows: Int64s, served: Served, times: Int64s) -> Int64s:
    """The rank (T) of each event's item, asked for at `times` (T) ms; `NOTHING_KNOWN` as above.

    Raises InputError as `model_ranks` does.
    """
    model = served.model.eval()
    if not model.causal:
        raise InputError("a model of the time path `sequence` has no query at each position")
    inputs = KnownHistories.of(events, rows, served.item_ids, model.config.n_items)
    queries = queries_at(model, inputs, times)
    found = np.full(len(times), NOTHING_KNOWN, dtype=np.int64)
    (some,) = np.nonzero(inputs.lengths)
    some = some[np.argsort(inputs.lengths[some], kind="stable")]
    size = max(1, min(256, scores_at_once(model.device) // (model.n_scored + 1)))
    for begin in range(0, len(some), size):
        batch = some[begin : begin + size]
        targets = torch.from_numpy(inputs.targets[batch])[:, None]
        scores = model.scores(queries[batch]).scatter(1, inputs.seen(batch), -torch.inf)
        own = scores.gather(1, targets)  # -inf for an unknown item: the padding's
        rank = (~(scores[:, 1:] < own)).sum(1)
        missed = ~own[:, 0].isfinite()
        found[batch] = torch.where(missed, MISS, rank).numpy()
    return found


def with_fallback(ranks: Mapping[str, Int64s], fallback: Int64s) -> dict[str, Int64s]:
    """`fallback` (T) where the model knows nothing of the user's history."""
    return {name: np.where(own == NOTHING_KNOWN, fallback, own) for name, own in ranks.items()}

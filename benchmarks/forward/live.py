"""Ranks of what the product serves in a walk forward: a model, the live layer and its mixture.

As in a service every event is counted, and the weights of the model stay. At each border of a
period the mixture is fitted anew, on the newest of the events walked through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from benchmarks.forward.training import Refitted
from benchmarks.ranks import ResultError
from model.live.mixture import Mixture
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.forward.models import Served, request_times, times_asked
from training.forward.walk import Walk
from training.interactions import Log
from training.metrics import MISS
from training.mixture import (
    LEAST_EVENTS,
    MOST_EVENTS,
    Collector,
    Examples,
    asked_at,
    collected,
    fitted,
    user_ids,
)

SERVED, ONE_MIXTURE = "served", "one-mixture"
DEPTH = 50
"""How many items are asked for: a target beyond them is a miss."""


def live_ranks(
    log: Log, walk: Walk, models: Refitted, *, seed: int = 0, grain_ms: int = 1
) -> dict[str, dict[str, Int64s]]:
    """The rank (T) of each event's item, by policy, then request time.

    `served` has the mixture fitted at the last border, `one-mixture` that of the first.

    Args:
        grain_ms: events of one such span of time are ranked before any of them is counted.

    Raises ResultError where too little happens before the cut to fit a mixture.
    """
    base, refitted = models.base, models.refitted
    live = LiveWalk(walk.events, user_ids(log), base.model, base.item_ids)
    rng = np.random.default_rng(seed)
    examples = _examples_before_the_cut(walk, live, models, rng)
    if len(examples) < LEAST_EVENTS:
        raise ResultError(f"{len(examples)} events before the cut are too few to fit a mixture")
    first = fitted(examples, seed=seed)
    live.replace_model(refitted.model, refitted.item_ids)
    found: dict[str, list[Int64s]] = {SERVED: [], ONE_MIXTURE: []}
    for _, blocks in groupby(walk.blocks(grain_ms), lambda block: walk.periods[block.start]):
        mixtures = {SERVED: fitted(examples, seed=seed), ONE_MIXTURE: first}
        period = _Period.of(walk, list(blocks), refitted, rng)
        ranks, walked = period.walk_through(live, mixtures)
        for name, own in ranks.items():
            found[name].append(own)
        examples = Examples.joined([examples, walked]).newest(MOST_EVENTS)
    asked = times_asked(refitted)
    return {
        name: dict(zip(asked, np.concatenate(parts).T, strict=True))
        for name, parts in found.items()
    }


def _examples_before_the_cut(
    walk: Walk, live: LiveWalk, models: Refitted, rng: np.random.Generator
) -> Examples:
    """Of the events that the base model was not trained on; counts all up to the cut."""
    before = walk.order[: -len(walk.rows)]
    begin = int(np.searchsorted(walk.events.times[before], models.since_ms))
    live.observe(before[:begin])
    rows = before[begin:]
    return collected(live, rows, _lists_to_fit_on(walk.events, rows, models.base, rng))


def _lists_to_fit_on(
    events: Events, rows: Int64s, served: Served, rng: np.random.Generator
) -> ModelLists:
    times = asked_at(events, rows, rng)
    return ModelLists.of(events, rows, served.model, served.item_ids, times)


@dataclass(frozen=True, slots=True)
class _Period:
    """The events of a period, rows of the log (T), and what the model says at each.

    ends: of the events that are counted together; asked: (T * M), an event's M times of asking one
    after the other; drawn: (T), each asked for at the time that a mixture is fitted on.
    """

    rows: Int64s
    ends: Sequence[int]
    asked: ModelLists
    drawn: ModelLists

    @classmethod
    def of(
        cls, walk: Walk, blocks: Sequence[slice], served: Served, rng: np.random.Generator
    ) -> _Period:
        """blocks: of the walk's rows, one after the other."""
        begin = blocks[0].start
        rows, events = walk.rows[begin : blocks[-1].stop], walk.events
        by_name = request_times(events, rows)
        times = np.stack([by_name[name] for name in times_asked(served)], axis=1)
        return cls(
            rows,
            [block.stop - begin for block in blocks],
            ModelLists.of(
                events, np.repeat(rows, times.shape[1]), served.model, served.item_ids,
                times.ravel(),
            ),
            _lists_to_fit_on(events, rows, served, rng),
        )  # fmt: skip

    def walk_through(
        self, live: LiveWalk, mixtures: Mapping[str, Mixture]
    ) -> tuple[dict[str, Int64s], Examples]:
        """The ranks (T, M) by each mixture, and what another can be fitted on."""
        n_asked = len(self.asked.known) // len(self.rows)
        found = {name: np.zeros((len(self.rows), n_asked), np.int64) for name in mixtures}
        collector = Collector()
        begin = 0
        for end in self.ends:
            rows = self.rows[begin:end]
            lists = self.asked.part(slice(begin * n_asked, end * n_asked))
            for name, mixture in mixtures.items():
                live.ranker.mixture = mixture
                ranks = _ranks(live, np.repeat(rows, n_asked), lists)
                found[name][begin:end] = ranks.reshape(-1, n_asked)
            for place in range(begin, end):
                collector.add(live, int(self.rows[place]), self.drawn, place)
            live.observe(rows)
            begin = end
        return found, collector.examples()


def _ranks(live: LiveWalk, rows: Int64s, lists: ModelLists) -> Int64s:
    found = np.full(len(rows), MISS, np.int64)
    for place, best in enumerate(live.best(rows, lists, DEPTH)):
        # An item without an event so far has row 0, which is never among the best.
        (at,) = np.nonzero(best == live.row_of(int(rows[place])))
        if len(at):
            found[place] = at[0] + 1
    return found

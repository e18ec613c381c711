"""Ranks of what the product serves in a walk forward: a model, the live layer and its mixture.

As in a service every event is counted, and the weights of the model stay. At each border of a
period the mixture is fitted anew, on the newest of the events walked through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def live_ranks(
    log: Log, walk: Walk, models: Refitted, *, seed: int = 0, grain_ms: int = 1
) -> dict[str, dict[str, Int64s]]:
    """The rank (T) of each event's item, by policy, then request time.

    `served` has the mixture fitted at the last border, `one-mixture` that of the first.

    Args:
        grain_ms: events of one such span of time are ranked before any of them is counted.

    Raises ResultError where too little happens before the cut to fit a mixture.
    """
    start = Start.of(log, walk, models, seed)
    live, examples = start.live, start.examples
    first = fitted(examples, seed=seed)
    found: dict[str, list[Int64s]] = {SERVED: [], ONE_MIXTURE: []}
    for _, blocks in by_period(walk, grain_ms):
        mixtures = {SERVED: fitted(examples, seed=seed), ONE_MIXTURE: first}
        part = Part.of(walk, blocks, models.refitted, start.rng)
        ranks, walked = part.walk_through(live, mixtures)
        for name, own in ranks.items():
            found[name].append(own)
        examples = Examples.joined([examples, walked]).newest(MOST_EVENTS)
    asked = times_asked(models.refitted)
    return {
        name: dict(zip(asked, np.concatenate(parts).T, strict=True))
        for name, parts in found.items()
    }


@dataclass(frozen=True, slots=True)
class Start:
    """The walk at the cut: live, by the published model, has counted everything before; examples:
    of the events that the base model was not trained on; rng: goes on being drawn from."""

    live: LiveWalk
    examples: Examples
    rng: np.random.Generator

    @classmethod
    def of(cls, log: Log, walk: Walk, models: Refitted, seed: int) -> Start:
        """Raises ResultError where too little happens before the cut to fit a mixture."""
        base, refitted = models.base, models.refitted
        live = LiveWalk(walk.events, user_ids(log), base.model, base.item_ids)
        rng = np.random.default_rng(seed)
        begin = int(np.searchsorted(walk.events.times[walk.before], models.since_ms))
        live.observe(walk.before[:begin])
        rows = walk.before[begin:]
        examples = collected(live, rows, _lists_to_fit_on(walk.events, rows, base, rng))
        if len(examples) < LEAST_EVENTS:
            raise ResultError(f"{len(examples)} events before the cut are too few to fit a mixture")
        live.replace_model(refitted.model, refitted.item_ids)
        return cls(live, examples, rng)


def by_period(walk: Walk, grain_ms: int) -> Iterator[tuple[int, list[slice]]]:
    """The number of each period, from 0 on, and the slices of the walk's rows that are counted
    together in it."""
    blocks = (ranked for _, ranked in walk.blocks(grain_ms))
    for period, own in groupby(blocks, lambda block: int(walk.periods[block.start])):
        yield period, list(own)


def _lists_to_fit_on(
    events: Events, rows: Int64s, served: Served, rng: np.random.Generator
) -> ModelLists:
    times = asked_at(events, rows, rng)
    return ModelLists.of(events, rows, served.model, served.item_ids, times)


@dataclass(frozen=True, slots=True)
class Part:
    """Some events that follow one another, rows of the log (T), and what the model says at each.

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
    ) -> Part:
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
                ranks = live.ranks(np.repeat(rows, n_asked), lists)
                found[name][begin:end] = ranks.reshape(-1, n_asked)
            for place in range(begin, end):
                collector.add(live, int(self.rows[place]), self.drawn, place)
            live.observe(rows)
            begin = end
        return found, collector.examples()

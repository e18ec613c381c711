"""Ranks of what a learner serves in a walk forward: as `served`, with another model now and then.

At each border of a period but the first the mixture is fitted anew, and a candidate is made of the
model that is served, by what came before the last part of the period that ends; both are judged on
that part. If the candidate is not worse, it is made once more, of everything before the border, and
is served from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.forward.live import Part, Start, by_period
from benchmarks.forward.training import Refitted, before
from model.live.mixture import Mixture
from training.dataset import Int64s
from training.forward.models import Served, times_asked
from training.forward.walk import Walk
from training.interactions import Log
from training.judge import Contender, judge
from training.mixture import MOST_EVENTS, Examples, fitted
from training.verdict import Verdict

LEARN = "learn"
JUDGED = 0.2
"""The share of a period's events, its last, that a candidate is judged on."""
PASSED = (Verdict.BETTER, Verdict.NOT_WORSE)


@dataclass(frozen=True, slots=True)
class Trained:
    """until_ms: it was trained on what came before. mixture: None: it has none of its own."""

    served: Served
    until_ms: int
    mixture: Mixture | None = None

    def contender(self, mixture: Mixture) -> Contender:
        """mixture: in place of one of its own."""
        return Contender(self.served, self.mixture or mixture)


Step = Callable[[Trained, Log, Path], Trained]
"""Makes a model of the one before, whose mixture it may go on from, and all interactions so far;
goes on from what a folder holds."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What decides at the borders. folder: where its models are trained; console: is told each
    verdict."""

    log: Log
    step: Step
    folder: Path
    console: Console

    def following(self, before_it: Trained, period: int, judged_from: int, border: int) -> Trained:
        """What is served in a period.

        Args:
            before_it: what was until then, its mixture fitted on what came before `judged_from` ms.
            border: ms, where the period begins.
        """
        folder, mixture = self.folder / str(period), before_it.mixture
        assert mixture is not None
        candidate = self.step(before_it, before(self.log, judged_from), folder / "judged")
        found = judge(
            before(self.log, border),
            before_it.contender(mixture),
            candidate.contender(mixture),
            judged_from - 1,
        )
        self.console.print(f"border {period}: {found}", highlight=False)
        if found.verdict not in PASSED:
            return replace(before_it, mixture=None)
        return self.step(before_it, before(self.log, border), folder / "published")


def learned_ranks(
    walk: Walk, models: Refitted, learner: Learner, *, seed: int = 0, grain_ms: int = 1
) -> dict[str, Int64s]:
    """The rank (T) of each event's item, by request time; arguments as of `live_ranks`."""
    start = Start.of(learner.log, walk, models, seed)
    live, examples = start.live, start.examples
    trained = Trained(models.refitted, int(walk.borders[0]))
    mixture = judged_by = fitted(examples, seed=seed)
    judged_from = 0
    found: list[Int64s] = []
    for period, blocks in by_period(walk, grain_ms):
        if period:
            border = int(walk.borders[period])
            judged = replace(trained, mixture=judged_by)
            trained = learner.following(judged, period, judged_from, border)
            live.replace_model(trained.served.model, trained.served.item_ids)
            mixture = trained.mixture or fitted(examples, seed=seed)
        for part in _parted(blocks):
            judged_by = fitted(examples, seed=seed)  # in the end without the last part
            judged_from = int(walk.events.times[walk.rows[part[0].start]])
            ranks, walked = Part.of(walk, part, trained.served, start.rng).walk_through(
                live, {LEARN: mixture}
            )
            found.append(ranks[LEARN])
            examples = Examples.joined([examples, walked]).newest(MOST_EVENTS)
    return dict(zip(times_asked(trained.served), np.concatenate(found).T, strict=True))


def _parted(blocks: Sequence[slice]) -> list[Sequence[slice]]:
    """Blocks without the last ones, and those, which have the share `JUDGED` of the events."""
    begin, end = blocks[0].start, blocks[-1].stop
    last = begin + (1 - JUDGED) * (end - begin)
    n = sum(block.start < last for block in blocks[:-1])
    return [part for part in (blocks[:n], blocks[n:]) if part]

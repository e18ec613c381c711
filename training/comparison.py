"""A model beside counting: recent popularity and item-kNN of the same targets.

All three have the same interactions to learn from, the training part, and the same history of each
target's user. What the user has had is left out. So this is what the model itself is worth; what
the live layer adds is in `training.judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from model import UNKNOWN_TIME
from training.dataset import Dataset, Int32s, Int64s, Targets
from training.forward.counting import Evidence
from training.forward.events import Events
from training.forward.item_knn import ItemKNN
from training.forward.popularity import Popularity
from training.metrics import gains
from training.verdict import DECIDING, Difference

METRICS = ("HR@10", DECIDING)
MOST_PAIRED = 1_000_000
"""Item-kNN counts so many of the newest training interactions: its pairs take memory."""
MOST_TARGETS = 20_000


@dataclass(frozen=True)
class Comparison:
    """Ranks (T) of the same targets, without what their users have had.

    users: (T); model: the model's ranks; counted: those of the counting policies, by name; before:
    how many targets the user has had before, which is a miss for all.
    """

    users: Int64s
    model: Int64s
    counted: Mapping[str, Int64s]
    before: int

    @classmethod
    def of(cls, dataset: Dataset, targets: Targets, filtered: Int64s) -> Comparison:
        """filtered: the model's ranks (T), `Ranking.filtered`. Of more than `MOST_TARGETS` so many
        are drawn, always the same."""
        if len(targets) > MOST_TARGETS:
            drawn = np.random.default_rng(0).choice(len(targets), MOST_TARGETS, replace=False)
            targets, filtered = targets.take(np.sort(drawn)), filtered[np.sort(drawn)]
        asked = _Asked.of(dataset, targets)
        counted = {
            "recent popularity": asked.ranks(_popularity(dataset)),
            "item-kNN": asked.ranks(_item_knn(dataset)),
        }
        return cls(targets.users, filtered, counted, asked.had_before())

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Of the deciding metric, the model's less that of each counting policy."""
        own = gains(self.model, DECIDING)
        return {
            name: Difference.of(self.users, gains(ranks, DECIDING), own)
            for name, ranks in self.counted.items()
        }

    def figures(self) -> dict[str, dict[str, float]]:
        """Means over the targets by name, then metric."""
        return {
            name: {metric: float(gains(ranks, metric).mean()) for metric in METRICS}
            for name, ranks in {"model": self.model, **self.counted}.items()
        }

    def lines(self, targets: str) -> list[str]:
        """For a person to read; targets: what they are."""
        repeats = ""
        if self.before:
            repeats = f" ({self.before:,} of them had before: a miss for all)"
        found = [f"{len(self.users):,} {targets}, without what each user has had{repeats}:"]
        figures = self.figures()
        width = max(map(len, figures))
        for name, own in figures.items():
            line = f"  {name:{width}}  " + "  ".join(f"{key} {own[key]:.4f}" for key in METRICS)
            if name in self.differences:
                change = self.differences[name].relative_to(own[DECIDING])
                line += f"  the model's {DECIDING} against it: {change}"
            found.append(line)
        found.append(self._in_words())
        return found

    def _in_words(self) -> str:
        below = [name for name, own in self.differences.items() if own.high < 0]
        unsure = [name for name, own in self.differences.items() if own.low <= 0 <= own.high]
        if below:
            return f"the model alone is worse than counting here ({' and '.join(below)})"
        if unsure:
            return (
                f"the model alone is not surely better than counting here ({' and '.join(unsure)})"
            )
        return "the model alone is better than counting, by more than chance explains"

    def to_dict(self) -> dict[str, Any]:
        return {
            name: own
            | (
                {"model_less_this": [difference.mean, difference.low, difference.high]}
                if (difference := self.differences.get(name)) is not None
                else {}
            )
            for name, own in self.figures().items()
        }


def _popularity(dataset: Dataset) -> Evidence:
    events = _training_events(dataset)
    counts = Popularity(events)
    counts.observe(np.arange(len(events.items)))
    return counts.evidence


def _item_knn(dataset: Dataset) -> Evidence:
    events = _newest(_training_events(dataset), MOST_PAIRED)
    counts = ItemKNN(events)
    counts.observe(np.arange(len(events.items)))
    return counts.evidence


def _training_events(dataset: Dataset) -> Events:
    histories = dataset.histories
    users = histories.users
    (rows,) = np.nonzero(np.arange(len(users)) < dataset.train_ends[users])
    times = histories.times[rows]
    if (times == UNKNOWN_TIME).any():
        times = np.zeros_like(times)
    return _events(dataset, users[rows], histories.items[rows], times)


def _newest(events: Events, most: int) -> Events:
    if len(events.items) <= most:
        return events
    rows = np.sort(np.argsort(events.times, kind="stable")[-most:])
    users = events.users[rows]
    firsts = np.searchsorted(users, users)
    return Events(users, events.items[rows], events.times[rows], firsts, events.item_ids)


def _events(dataset: Dataset, users: Int64s, items: Int32s, times: Int64s) -> Events:
    """Item 0, which has no event, is what the vocabulary lacks."""
    firsts = np.searchsorted(users, users)
    return Events(users, items.astype(np.int64), times, firsts, ["", *dataset.item_ids])


@dataclass(frozen=True, slots=True)
class _Asked:
    """Each target after its user's history, as if no other target were of that user; rows: (T)
    where the targets are."""

    events: Events
    rows: Int64s

    @classmethod
    def of(cls, dataset: Dataset, targets: Targets) -> _Asked:
        begins = dataset.histories.offsets[targets.users]
        lengths = targets.ends - begins + 1
        rows = np.cumsum(lengths) - 1
        places = np.arange(int(lengths.sum())) + np.repeat(begins - (rows - lengths + 1), lengths)
        items = np.append(dataset.histories.items, np.int32(0))[places]
        items[rows] = targets.items
        users = np.repeat(np.arange(len(targets)), lengths)
        return cls(_events(dataset, users, items, np.zeros_like(places)), rows)

    def ranks(self, evidence: Evidence) -> Int64s:
        return evidence.ranks(self.events, self.rows)

    def had_before(self) -> int:
        """How many of the targets' users have had them."""
        items = self.events.items
        alike = items == np.repeat(items[self.rows], np.diff(self.rows, prepend=-1))
        alike[self.rows] = False
        had = np.add.reduceat(alike, self.events.firsts[self.rows]) > 0
        return int((had & (items[self.rows] > 0)).sum())

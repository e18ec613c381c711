"""Which training step is due: a small one often, a large one seldom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.journal import Step

LARGEST_FIRST: tuple[Step, ...] = ("scratch", "warm", "scoring")


@dataclass(frozen=True)
class Schedule:
    """Seconds between two steps of a kind; 0: never."""

    scoring_s: float
    warm_s: float
    scratch_s: float

    def due(self, done: Mapping[Step, float], at: float) -> Step | None:
        """The largest step that is due; `done` as for `due_at`."""
        due = self.due_at(done)
        return next((step for step in LARGEST_FIRST if step in due and due[step] <= at), None)

    def due_at(self, done: Mapping[Step, float]) -> dict[Step, float]:
        """When each step that is ever made is next due, epoch seconds.

        Args:
            done: when each step was made last. A larger one makes a smaller one's work too.
        """
        every = {"scratch": self.scratch_s, "warm": self.warm_s, "scoring": self.scoring_s}
        found: dict[Step, float] = {}
        newest = float("-inf")
        for step in LARGEST_FIRST:
            newest = max(newest, done.get(step, float("-inf")))
            if every[step]:
                found[step] = newest + every[step]
        return found


def counted_from(done: Mapping[Step, float], at: float) -> dict[Step, float]:
    """With a moment for the steps that were never made."""
    return {step: done.get(step, at) for step in LARGEST_FIRST}

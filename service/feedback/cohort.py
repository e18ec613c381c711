"""Users of a trial who were first shown something at about the same time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Observed:
    """`shown`: users who were shown something; `taken`: of these, those who took something."""

    shown: int = 0
    taken: int = 0

    def __add__(self, other: Observed) -> Observed:
        return Observed(self.shown + other.shown, self.taken + other.taken)

    @property
    def variance(self) -> float:
        """Of an observation. One of each kind is added, so that it is never 0."""
        part = (self.taken + 1) / (self.shown + 2)
        return part * (1 - part)


@dataclass(frozen=True)
class Cohort:
    """Those whom the base answers, and those whom the trial does."""

    base: Observed = Observed()
    trial: Observed = Observed()

    @property
    def weight(self) -> float:
        both = self.base.shown + self.trial.shown
        return self.base.shown * self.trial.shown / both if both else 0.0

"""Whether a candidate may take the place of the model that is served, by ranks of the same events.

The candidate's NDCG@10 less the incumbent's has a 95 % interval, from a bootstrap over users. With
it and a margin, a share of the incumbent's NDCG@10, the verdict is

* `better`: the whole interval is above 0;
* `not worse`: it is above minus the margin, so that more than the margin is hardly lost;
* `worse`: it reaches minus the margin, and the difference is below 0 in 199 of 200 draws of users;
* `undecided`: otherwise; more events would tell.

Before all that, `below counting` is what has less than recent popularity or item-kNN, the whole
interval of that difference being below 0.

So a candidate that loses the margin or more gets past 1 time in 40, and one that is as good as the
incumbent is called `worse` 1 time in 200, whatever the number of events. That number decides how
often `undecided` is said: at an HR@10 of 0.15, where the two agree on 7 events of 10, a candidate
as good as the incumbent passes a margin of 5 % 3 times in 10 with 3,000 events and 8 times in 10
with 10,000. With a margin of 1 % it would take some 250,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from training.bootstrap import Float64s, percentiles, resampled_means
from training.dataset import Int64s
from training.metrics import gains

INCUMBENT, CANDIDATE = "incumbent", "candidate"
DECIDING = "NDCG@10"
METRICS = (DECIDING, "HR@10")
MARGIN = 0.05
LEAST_EVENTS, LEAST_USERS = 200, 50
RESAMPLES = 2000
SURELY = 0.995


class Verdict(StrEnum):
    BETTER = "better"
    NOT_WORSE = "not worse"
    WORSE = "worse"
    BELOW_COUNTING = "below counting"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean over events, with the interval that holds it for 95 % of the draws of users.

    negative: the share of the draws for which it is below 0.
    """

    mean: float
    low: float
    high: float
    negative: float

    @classmethod
    def of(cls, users: Int64s, a: Float64s, b: Float64s) -> Difference:
        """b less a, of the same events (T)."""
        means = resampled_means(users, (b - a)[:, None], resamples=RESAMPLES)
        return cls(float((b - a).mean()), *percentiles(means), float((means < 0).mean()))

    def relative_to(self, mean: float) -> str:
        """In percent of a mean, as text; as it is where the mean is 0."""
        if not mean:
            return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"
        return f"{self.mean / mean:+.1%} ({self.low / mean:+.1%} to {self.high / mean:+.1%})"


@dataclass(frozen=True, slots=True)
class Judgement:
    """figures: means over events by policy, then metric; differences: candidate less incumbent, by
    metric; both empty where there are too few events or users. below: the counting policy that the
    candidate is below."""

    verdict: Verdict
    margin: float
    events: int
    users: int
    figures: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Difference]
    below: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.value,
            "margin": self.margin,
            "events": self.events,
            "users": self.users,
            "figures": {policy: dict(own) for policy, own in self.figures.items()},
            "difference": {metric: asdict(own) for metric, own in self.differences.items()},
        }

    def __str__(self) -> str:
        """The verdict and why, in one sentence."""
        if not self.differences:
            return (
                f"{self.verdict}: {self.events:,} events of {self.users:,} users are too few, at "
                f"least {LEAST_EVENTS} of {LEAST_USERS} are needed"
            )
        own, before = (self.figures[name][DECIDING] for name in (CANDIDATE, INCUMBENT))
        if self.below is not None:
            counted = self.figures[self.below][DECIDING]
            return (
                f"{self.verdict}: the candidate's {DECIDING} is {own:.4f}, that of {self.below} "
                f"{counted:.4f}"
            )
        why = {
            Verdict.BETTER: "",
            Verdict.NOT_WORSE: f"; not more than {self.margin:.0%} is lost",
            Verdict.WORSE: "",
            Verdict.UNDECIDED: f"; a loss of {self.margin:.0%} can't be ruled out: judge again "
            "with more events",
        }[self.verdict]
        change = self.differences[DECIDING].relative_to(before)
        return f"{self.verdict}: {DECIDING} {own:.4f} against {before:.4f}, {change}{why}"


def too_few(users: Int64s) -> bool:
    """Whether events of these users (T) can't decide anything."""
    return len(users) < LEAST_EVENTS or len(np.unique(users)) < LEAST_USERS


def decide(users: Int64s, ranks: Mapping[str, Int64s], margin: float = MARGIN) -> Judgement:
    """The judgement by ranks (T) of `INCUMBENT`, `CANDIDATE` and counting policies, by name.

    Args:
        users: (T) of the events; where these are too few, no ranks are looked at.
    """
    n_users = len(np.unique(users))
    if too_few(users):
        return Judgement(Verdict.UNDECIDED, margin, len(users), n_users, {}, {})
    values = {name: {m: gains(own, m) for m in METRICS} for name, own in ranks.items()}
    figures = {
        name: {metric: float(gain.mean()) for metric, gain in own.items()}
        for name, own in values.items()
    }
    differences = {
        metric: Difference.of(users, values[INCUMBENT][metric], values[CANDIDATE][metric])
        for metric in METRICS
    }
    counted = {
        name: Difference.of(users, own[DECIDING], values[CANDIDATE][DECIDING])
        for name, own in values.items()
        if name not in (INCUMBENT, CANDIDATE)
    }
    below = min(
        (name for name, own in counted.items() if own.high < 0),
        default=None,
        key=lambda name: counted[name].mean,
    )
    found = _verdict(differences[DECIDING], margin * figures[INCUMBENT][DECIDING])
    return Judgement(
        Verdict.BELOW_COUNTING if below is not None else found,
        margin,
        len(users),
        n_users,
        figures,
        differences,
        below,
    )


def _verdict(difference: Difference, margin: float) -> Verdict:
    if difference.low > 0:
        return Verdict.BETTER
    if difference.low > -margin:
        return Verdict.NOT_WORSE
    return Verdict.WORSE if difference.negative >= SURELY else Verdict.UNDECIDED

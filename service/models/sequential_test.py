"""Whether a trial's users take what they are shown more often than the base's: a test that may be
looked at as often as one likes, and acted on at any look.

An observation is a user: whether the user took something. Users come in cohorts, by when they were
first shown something, so that a share that is changed on the way biases nothing: a trial's users
are compared with the base's of the same cohort. Cohorts are weighted as Cochran, Mantel and
Haenszel's strata are, by n_t n_b / (n_t + n_b), which is known before the outcomes.

The interval is an asymptotic confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
Time-uniform central limit theory and asymptotic confidence sequences, Annals of Statistics 2024,
theorem 2.2, the boundary of Robbins' normal mixture. With W the sum of the weights, s^2 the
variance of an observation and r a constant, with probability 1 - ERROR at all times together

    |estimate - difference| <= s / W * sqrt((W + r) * log((W + r) / (r * ERROR^2)))

It assumes that users are many, and independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from service.feedback.cohort import Cohort, Observed

ERROR = 0.05
"""Probability that a trial which makes no difference is ever found to make one."""


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    base, trial: of all cohorts.
    difference: of the parts of users who took something, trial less base; None: one of the two has
        no users.
    low, high: it is between these, whenever one looks; -1 and 1: nothing is known.
    """

    base: Observed
    trial: Observed
    difference: float | None
    low: float
    high: float


def compared(cohorts: Iterable[Cohort], tightest_at: float) -> Comparison:
    """By all that is known of these cohorts.

    Args:
        tightest_at: the sum of weights at which the interval is to be as narrow as it can be, to be
            chosen before anything is known.
    """
    cohorts = list(cohorts)
    base = sum((cohort.base for cohort in cohorts), Observed())
    trial = sum((cohort.trial for cohort in cohorts), Observed())
    weighed = [cohort for cohort in cohorts if cohort.weight]
    total = sum(cohort.weight for cohort in weighed)
    if not total:
        return Comparison(base, trial, None, -1.0, 1.0)
    difference = (
        sum(
            one.weight * (one.trial.taken / one.trial.shown - one.base.taken / one.base.shown)
            for one in weighed
        )
        / total
    )
    variance = (
        sum(
            one.weight**2 * (trial.variance / one.trial.shown + base.variance / one.base.shown)
            for one in weighed
        )
        / total
    )
    chance = -2 * math.log(ERROR)
    r = tightest_at / (chance + math.log(chance + 1))
    half = math.sqrt(variance * (total + r) * (math.log((total + r) / r) + chance)) / total
    return Comparison(
        base, trial, difference, max(-1.0, difference - half), min(1.0, difference + half)
    )

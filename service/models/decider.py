"""Ends trials by what their users do, whichever process is the first to see it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.feedback.trial_counts import TrialCounts
from service.models.decision import Decision, Outcome, Reason
from service.models.registry import ModelRegistry
from service.models.sequential_test import Comparison, compared
from service.models.traffic_split import TrafficSplit, Trial
from service.observe import metrics
from service.settings import Settings
from service.store.follower import Follower

logger = logging.getLogger(__name__)


class Decider:
    """Looks at the trials that are to decide whenever a cohort has been observed."""

    def __init__(self, registry: ModelRegistry, counts: TrialCounts, settings: Settings) -> None:
        self._registry, self._counts, self._settings = registry, counts, settings

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decides meanwhile."""
        every_s = max(self._counts.cohort_ms / 1000, self._settings.model_poll_s)
        async with Follower(self.decide, every_s, "trials are not decided"):
            yield

    async def figures(self, trial: Trial) -> Comparison:
        """What is known of a trial.

        Raises:
            StoreError
        """
        cohorts = await self._counts.cohorts(trial.token)
        return compared(cohorts, tightest_at=self._settings.trial_least_users)

    def found(self, figures: Comparison) -> Reason:
        """What the figures say by now."""
        least = self._settings.trial_least_users
        if min(figures.base.shown, figures.trial.shown) >= least:
            if figures.low > 0:
                return "better"
            if figures.high < 0:
                return "worse"
        return "undecided"

    async def decide(self) -> None:
        """Ends the trials whose time it is.

        Raises:
            StoreError
        """
        try:
            split = await self._registry.read()
        except ValueError:  # who follows it says so
            return
        now_ms = round(time.time() * 1000)
        for trial in split.trials:
            if trial.decide:
                figures = await self.figures(trial)
                if (reason := self._reason(trial, figures, now_ms)) is not None:
                    await self._end(split, trial, reason, figures, now_ms)
                    return  # the others by what is set then

    def _reason(self, trial: Trial, figures: Comparison, now_ms: int) -> Reason | None:
        """Why it is to end; None: it goes on."""
        settings, reason = self._settings, self.found(figures)
        if reason != "undecided":
            return reason
        if now_ms < trial.since_ms + 1000 * settings.trial_longest_s:
            return None
        enough = min(figures.base.shown, figures.trial.shown) >= settings.trial_least_users
        return "not worse" if enough and figures.low > -settings.trial_margin else "undecided"

    async def _end(
        self, split: TrafficSplit, trial: Trial, reason: Reason, figures: Comparison, now_ms: int
    ) -> None:
        promoted = reason in ("better", "not worse")
        decision: Outcome = "promoted" if promoted else "taken_back"
        variant = trial.variant
        after = split.promoted(variant, now_ms) if promoted else split.without(trial)
        noted = Decision(
            variant.name, variant.identity, variant.live, decision, reason, now_ms,
            self._registry.process, figures,
        )  # fmt: skip
        if not await self._registry.replace(split, after.noted(noted)):
            return  # another change came first: by what is set then
        metrics.TRIAL_DECISIONS[decision].inc()
        logger.info(
            "trial of %s %s: %s, %s; %d of %d users took something, of the others %d of %d; "
            "difference between %.4f and %.4f",
            variant.name, variant.identity, decision.replace("_", " "), reason,
            figures.trial.taken, figures.trial.shown, figures.base.taken, figures.base.shown,
            figures.low, figures.high,
        )  # fmt: skip

"""The models that answer requests by a traffic split, until the last of these requests is answered.

A new split makes a new deployment; each answers to the end what began with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.feedback.trial_counts import Arm
from service.models.served_model import ServedModel
from service.models.traffic_split import SEGMENTS, TrafficSplit, segment


class Deployment:
    """Args:
    base: answers everybody whom no trial does, and what is of no user.
    trials: the split's, in its order.
    """

    def __init__(
        self, split: TrafficSplit, base: ServedModel, trials: Sequence[ServedModel] = ()
    ) -> None:
        self.split, self.base, self.trials = split, base, tuple(trials)
        self._by_segment = [base] * SEGMENTS
        compared = []
        for trial, model in zip(split.trials, self.trials, strict=True):
            for one in trial.segments:
                self._by_segment[one] = model
            if model is not base:  # a process may have been started with what is on trial
                compared.append((trial.token, model))
        self._arms = {base: tuple(Arm(token, "base") for token, _ in compared)}
        self._arms |= {model: (Arm(token, "trial"),) for token, model in compared}
        self._under_way = 0
        self._retired = False
        self._left = asyncio.Event()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (self.base, *self.trials)

    def of(self, user_id: str) -> ServedModel:
        """The model that answers a user."""
        return self._by_segment[segment(user_id)] if self.trials else self.base

    def arms(self, model: ServedModel) -> tuple[Arm, ...]:
        """Of trials, those that a model of it is."""
        return self._arms[model]

    def hold(self) -> None:
        """Keeps the models open until `release`."""
        self._under_way += 1

    def release(self) -> None:
        """What `hold` began is over."""
        self._under_way -= 1
        if self._retired and not self._under_way:
            self._left.set()

    async def retire(self) -> None:
        """Returns when nobody holds the models any more; from now on nobody may begin to."""
        self._retired = True
        if self._under_way:
            await self._left.wait()

"""The models that answer requests by a traffic split, until the last of these requests is answered.

A new split makes a new deployment; each answers to the end what began with it.
"""

from __future__ import annotations

import asyncio

from service.models.served_model import ServedModel
from service.models.traffic_split import TrafficSplit


class Deployment:
    """Args:
    base: answers everybody whom the trial does not, and what is of no user.
    """

    def __init__(
        self, split: TrafficSplit, base: ServedModel, trial: ServedModel | None = None
    ) -> None:
        self.split, self.base, self.trial = split, base, trial
        self._under_way = 0
        self._retired = False
        self._left = asyncio.Event()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (self.base,) if self.trial is None else (self.base, self.trial)

    def of(self, user_id: str) -> ServedModel:
        """The model that answers a user."""
        return self.trial if self.trial is not None and self.split.tries(user_id) else self.base

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

"""How far users have moved from one model to another."""

from __future__ import annotations

from service.models.deployment import Deployment
from service.models.served_model import ServedModel
from service.observe import metrics


class Moves:
    """The users in memory whose model the last change has changed. Each moves with its next
    request, which makes its state of the new model.

    Attributes:
        moved: users who have a state of the new model.
    """

    def __init__(self) -> None:
        self.moved = 0
        self._waiting: dict[str, ServedModel] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def begin(self, old: Deployment, new: Deployment) -> None:
        """`new` takes the place of `old`."""
        self.moved = 0
        self._waiting = {
            user: new.of(user)
            for model in old.models
            for user in model.engine.pool.users()
            if old.of(user) is model and new.of(user) is not model
        }

    def count(self) -> None:
        """Looks who has moved meanwhile."""
        residents = {model: set(model.engine.pool.users()) for model in set(self._waiting.values())}
        there = [user for user, model in self._waiting.items() if user in residents[model]]
        for user in there:
            del self._waiting[user]
        self.moved += len(there)
        metrics.MOVED_USERS["moved"].set(self.moved)
        metrics.MOVED_USERS["waiting"].set(self.waiting)

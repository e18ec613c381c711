"""The models that answer requests, who is answered by which, and until when."""

from __future__ import annotations

import asyncio
import hashlib

from service.models.served_model import ServedModel


class Deployment:
    """One model, or two side by side. Never changed: another choice makes a new one.

    Args:
        base: answers everybody whom the other one does not, and what is of no user.
        trial: answers `share` of the users.
    """

    def __init__(
        self, base: ServedModel, trial: ServedModel | None = None, share: float = 0.0
    ) -> None:
        self.base, self.trial, self.share = base, trial, share
        self._under_way = 0
        self._retired = False
        self._left = asyncio.Event()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return (self.base,) if self.trial is None else (self.base, self.trial)

    def of(self, user_id: str) -> ServedModel:
        """The model that answers a user, the same as long as the trial lasts: a larger share
        moves users to the trial, and none back."""
        if self.trial is None or place_of(user_id, self.trial.artefact.identity) >= self.share:
            return self.base
        return self.trial

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


def place_of(user_id: str, trial: str) -> float:
    """Where from 0 to 1 a user stands in a trial; another trial mixes users anew."""
    digest = hashlib.blake2b(f"{trial}\0{user_id}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64

"""Which of two models answers a user."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """An artefact: its folder's name, and its edition, which another one of that name has not."""

    name: str
    identity: str


@dataclass(frozen=True)
class TrafficSplit:
    """One model for everybody, or a trial beside it.

    Attributes:
        version: number of the change; 0: nothing was ever set.
        base: answers whom the trial does not; None: what each process was started with.
        trial: answers `share` of the users; None: nobody.
        token: no two changes have the same.
    """

    version: int = 0
    base: Variant | None = None
    trial: Variant | None = None
    share: float = 0.0
    token: str = ""

    def tries(self, user_id: str) -> bool:
        """Whether the trial answers a user, the same as long as the trial lasts: a larger share
        moves users to the trial, and none back."""
        return self.trial is not None and _place(user_id, self.trial.identity) < self.share

    def chosen(self, variant: Variant, share: float) -> TrafficSplit:
        """With this model for everybody (share 1), or on trial for a share of the users."""
        if share >= 1:
            return self._next(variant, None, 0.0)
        return self._next(self.base, variant, share)

    def cleared(self) -> TrafficSplit:
        """With what each process was started with for everybody."""
        return self._next(None, None, 0.0)

    def _next(self, base: Variant | None, trial: Variant | None, share: float) -> TrafficSplit:
        return TrafficSplit(self.version + 1, base, trial, share, secrets.token_hex(8))


def _place(user_id: str, trial: str) -> float:
    """Where from 0 to 1 a user stands in a trial; another trial mixes users anew."""
    digest = hashlib.blake2b(f"{trial}\0{user_id}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64

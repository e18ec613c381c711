"""Which of several models answers a user.

Users are in segments by a hash of their ids, and each trial has some of the segments, drawn at
random of those that are free when it begins or grows (Bakshy, Eckles, Bernstein: Designing and
Deploying Online Field Experiments, 2014). So trials come, grow and end without moving the users of
others.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.models.decision import Decision

SEGMENTS = 1000
DECISIONS = 20
"""So many are kept, the latest."""


@dataclass(frozen=True)
class Variant:
    """An artefact as it is served.

    Attributes:
        name: its folder's.
        identity: its edition, which another one in that folder has not.
        live: False: it is served without its mixture; `identity` is that of the rest.
    """

    name: str
    identity: str
    live: bool = True


@dataclass(frozen=True)
class Trial:
    """A variant that answers a share of the users.

    Attributes:
        segments: of users that it answers.
        decide: whether it is to end by what its users do.
        since_ms: when it began, or was told to decide, if that was later.
        token: of what is counted of it; another one when it has another base to be compared with.
    """

    variant: Variant
    segments: tuple[int, ...]
    decide: bool
    since_ms: int
    token: str

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def share(self) -> float:
        return len(self.segments) / SEGMENTS


class NoRoomError(ValueError):
    """Trials can't have so many users together. One line."""


@dataclass(frozen=True)
class TrafficSplit:
    """One model for everybody, or trials beside it.

    Attributes:
        version: number of the change; 0: nothing was ever set.
        base: answers whom no trial does; None: what each process was started with.
        trials: oldest first, each of another name.
        decisions: of trials that have decided, latest first.
        token: no two changes have the same.
    """

    version: int = 0
    base: Variant | None = None
    trials: tuple[Trial, ...] = ()
    decisions: tuple[Decision, ...] = ()
    token: str = ""

    def trial(self, name: str) -> Trial | None:
        return next((trial for trial in self.trials if trial.name == name), None)

    def tried(self, variant: Variant, share: float, decide: bool, now_ms: int) -> TrafficSplit:
        """With this variant on trial for a share of the users: another trial, or a changed one. A
        larger share moves users of the base, and nobody else.

        Raises:
            NoRoomError: nobody would be left for the base.
        """
        others = tuple(trial for trial in self.trials if trial.name != variant.name)
        now = self.trial(variant.name)
        if now is None or now.variant != variant:
            trial = Trial(variant, (), decide, now_ms, _token())
        elif now.decide != decide:
            trial = replace(now, decide=decide, since_ms=now_ms)
        else:
            trial = now
        taken = {segment for other in others for segment in other.segments}
        number, free = max(1, round(share * SEGMENTS)), SEGMENTS - len(taken)
        if number >= free:
            raise NoRoomError(
                f"the other trials have {len(taken) / SEGMENTS:g} of the users: give less than "
                f"{free / SEGMENTS:g}"
            )
        trial = replace(trial, segments=drawn(variant, number, taken, trial.segments))
        if now is None:
            return self._next(self.base, (*self.trials, trial))
        return self._next(self.base, tuple(trial if old is now else old for old in self.trials))

    def promoted(self, variant: Variant, now_ms: int) -> TrafficSplit:
        """With this variant as the base. Its own trial is over; others go on, and begin anew to be
        compared where the base is another one."""
        trials = tuple(trial for trial in self.trials if trial.variant != variant)
        if variant != self.base:
            trials = tuple(replace(trial, since_ms=now_ms, token=_token()) for trial in trials)
        return self._next(variant, trials)

    def without(self, trial: Trial) -> TrafficSplit:
        """With this trial taken back: its users are the base's, and nobody else moves."""
        return self._next(self.base, tuple(other for other in self.trials if other is not trial))

    def cleared(self) -> TrafficSplit:
        """With what each process was started with for everybody."""
        return self._next(None, ())

    def noted(self, decision: Decision) -> TrafficSplit:
        """The same, with the decision that it is due to."""
        return replace(self, decisions=(decision, *self.decisions)[:DECISIONS])

    def _next(self, base: Variant | None, trials: tuple[Trial, ...]) -> TrafficSplit:
        return TrafficSplit(self.version + 1, base, trials, self.decisions, _token())


def segment(user_id: str) -> int:
    """The user's, the same in every process and for every trial."""
    return _hash(f"segment\0{user_id}") % SEGMENTS


def drawn(
    variant: Variant, number: int, taken: Iterable[int] = (), own: Iterable[int] = ()
) -> tuple[int, ...]:
    """So many segments that are not `taken`, those it has (`own`) first, in an order that is random
    and the variant's own: another one mixes users anew."""
    taken, own = frozenset(taken), frozenset(own)
    order = sorted(range(SEGMENTS), key=lambda one: _hash(f"{variant.identity}\0{one}"))
    kept = [one for one in order if one in own]
    free = [one for one in order if one not in own and one not in taken]
    return tuple(sorted([*kept, *free][:number]))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _token() -> str:
    return secrets.token_hex(8)

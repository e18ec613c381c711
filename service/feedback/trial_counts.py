"""How many users take something of what they are shown, by trial and arm, of all processes.

    <ns>:tried:<user>    hash   trial -> arm and time at which the user was first shown something
    <ns>:trial:<trial>   hash   cohort : arm : shown or taken -> users

A user counts once in a trial, in the arm that showed the first list, whatever follows. The cohort
is the time of that list. What the store does not take is lost, and nothing is counted twice. Of an
erased user the first key goes; the numbers know no users, and stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Literal, NamedTuple
from urllib.parse import quote

from service.feedback.cohort import Cohort, Observed
from service.observe import metrics
from service.store.client import Store
from service.store.errors import raised
from service.store.script import Command, Script

COHORTS = 24
"""Cohorts in the time that a user is observed."""
SETTLED_MS = 1000
"""What any process had counted before has arrived by then."""
KEPT_MS = 90 * 86_400_000
"""So long after the last user the numbers of a trial are kept."""
WAITING = 20_000
"""More than this is not counted."""
KNOWN = 50_000
"""So many users are known to be enrolled, and not sent again with each list."""
_AT_ONCE = 1000

_ENROL = Script.read("enrol", "service.feedback")
_TOOK = Script.read("took", "service.feedback")


class Arm(NamedTuple):
    """`trial`: what it is counted by."""

    trial: str
    side: Literal["base", "trial"]


class _Waiting(NamedTuple):
    """`counts`: what each trial that the command finds counts a user as; None: it finds none."""

    user_id: str
    command: Command
    counts: Literal["shown", "taken"] | None


class TrialCounts:
    """Args:
    observed_s: so long after the first list what a user takes counts.
    longest_s: no trial that decides takes longer.
    """

    def __init__(
        self, store: Store, *, namespace: str, observed_s: float, longest_s: float
    ) -> None:
        self._prefix = quote(namespace, safe="")
        self._observed_ms = round(1000 * observed_s)
        self._enrolled_ms = self._observed_ms + round(1000 * longest_s)
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._known: set[tuple[str, tuple[Arm, ...]]] = set()

    @property
    def cohort_ms(self) -> int:
        """How long a cohort is."""
        return max(1, self._observed_ms // COHORTS)

    def shown(self, user_id: str, arms: tuple[Arm, ...]) -> None:
        """A user is given a list, which is of these arms."""
        if not arms or (user_id, arms) in self._known:
            return
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known.add((user_id, arms))
        words = [word for arm in arms for word in arm]
        self._add(user_id, _ENROL.call(self._key(user_id), self._enrolled_ms, *words), "shown")

    def taken(self, user_id: str) -> None:
        """A user has taken something that was shown."""
        self._add(user_id, _TOOK.call(self._key(user_id), self._observed_ms), "taken")

    def erased(self, user_id: str) -> None:
        """Nothing is kept of the user."""
        self._waiting = deque(one for one in self._waiting if one.user_id != user_id)
        self._add(user_id, ("UNLINK", self._key(user_id)), None)

    async def flush(self) -> None:
        """Sends what waits.

        Raises:
            StoreError: a part of it is lost.
        """
        while self._waiting:
            part = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            answers = await self._store.pipeline([one.command for one in part])
            sums = Counter[tuple[str, str]]()
            for one, answer in zip(part, answers, strict=True):
                if one.counts is not None and isinstance(answer, list):
                    for trial, enrolled in zip(answer[::2], answer[1::2], strict=True):
                        sums[trial.decode(), self._field(enrolled.decode(), one.counts)] += 1
            await self._count(sums)
            raised(*answers)

    async def cohorts(self, trial: str) -> list[Cohort]:
        """Those of a trial whose users have all been observed for their whole time.

        Raises:
            StoreError
        """
        answers = await self._store.pipeline([("TIME",), ("HGETALL", self._of_trial(trial))])
        raised(*answers)
        (seconds, _), flat = answers
        ended = 1000 * int(seconds) - SETTLED_MS - self._observed_ms - self.cohort_ms
        found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for field, number in zip(flat[::2], flat[1::2], strict=True):
            begun, _, what = field.decode().partition(":")
            if int(begun) <= ended:
                found[int(begun)][what] = int(number)
        return [
            Cohort(
                Observed(of["base:shown"], of["base:taken"]),
                Observed(of["trial:shown"], of["trial:taken"]),
            )
            for _, of in sorted(found.items())
        ]

    async def _count(self, sums: Counter[tuple[str, str]]) -> None:
        if not sums:
            return
        commands: list[Command] = [
            ("HINCRBY", self._of_trial(trial), field, number)
            for (trial, field), number in sums.items()
        ]
        commands += [
            ("PEXPIRE", self._of_trial(trial), KEPT_MS)
            for trial in sorted({trial for trial, _ in sums})
        ]
        raised(*await self._store.once(commands))

    def _field(self, enrolled: str, what: str) -> str:
        side, _, at_ms = enrolled.partition("@")
        return f"{int(at_ms) // self.cohort_ms * self.cohort_ms}:{side}:{what}"

    def _add(
        self, user_id: str, command: Command, counts: Literal["shown", "taken"] | None
    ) -> None:
        if len(self._waiting) >= WAITING:
            metrics.OUTCOME_FAILURES.inc()
            return
        self._waiting.append(_Waiting(user_id, command, counts))

    def _key(self, user_id: str) -> str:
        return f"{self._prefix}:tried:{quote(user_id, safe='')}"

    def _of_trial(self, trial: str) -> str:
        return f"{self._prefix}:trial:{trial}"

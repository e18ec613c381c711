"""The loop: what is due is trained, judged, published, watched; one round after the other.

A round's state is written before each part, so that a learner that was killed goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

from learning import metrics
from learning.admin import Admin, AdminError
from learning.commands import CommandFailed
from learning.duration import in_words
from learning.journal import Journal, about, made
from learning.lease import Lease, LeaseHeld
from learning.round import Round, RoundFile, Stage
from learning.schedule import counted_from
from learning.serving import Serving
from learning.settings import LearnSettings
from learning.trained import Trained
from learning.training import Training
from model.artefact_store import ArtefactStoreError
from model.journal import Step, What
from service.store.errors import StoreError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""Of a part, before the round is given up; what may be served already is never given up."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 3600.0
_LAST: tuple[Stage, ...] = ("switch", "settle", "watch")
_FORESEEN = (AdminError, ArtefactStoreError, CommandFailed, OSError, StoreError, ValueError)


class Learner:
    def __init__(
        self, settings: LearnSettings, training: Training, serving: Serving, admin: Admin,
        journal: Journal, lease: Lease, file: RoundFile,
    ) -> None:  # fmt: skip
        self._settings, self._training, self._serving = settings, training, serving
        self._admin, self._journal, self._lease, self._file = admin, journal, lease, file
        self._failures = 0

    async def run(self, *, once: bool) -> bool:
        """Rounds for ever, or at most one: until it ends, fails, or waits for its trial.

        Returns:
            False: the one has failed; the next run goes on with it.

        Raises:
            LeaseHeld: another learner is at work, or has begun to be.
            StoreError: the store is away at the start.
        """
        async with self._lease.held():
            while True:
                pause = await self._look()
                if once:
                    return not self._failures
                await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Goes on with what is under way, or begins what is due; seconds until the next look."""
        going: Round | None = None
        try:
            await self._lease.hold()
            going = self._file.read()
            if going is None:
                self._training.tidy()  # of a learner that was killed as a round ended
                going = await self._due()
                if going is not None:
                    self._keep(going)
            if going is not None:
                going = await self._go_on(going)
        except LeaseHeld:
            raise
        except Exception as error:
            return await self._failed(None if going is None else self._under_way(), error)
        self._failures = 0
        return self._settings.every_s if going is None else self._settings.look_s

    async def _due(self) -> Round | None:
        """A new round, if a step is due."""
        served = await self._admin.served()
        incumbent = served.base or await self._training.published_as(served.started_with)
        await self._serving.note_rollback(served, incumbent)
        entries = await asyncio.to_thread(self._journal.entries)
        done = made(entries)
        parent = await self._training.incumbent(incumbent)
        if parent is None:
            # Nothing can be gone on from; where that has failed, it is tried again as scheduled.
            again = not done or self._settings.schedule.due(done, time.time()) not in (
                None, "scoring"
            )  # fmt: skip
            step: Step | None = "scratch" if again else None
        else:
            until_s = (await asyncio.to_thread(Trained.read, parent)).until_ms / 1000
            metrics.MODEL_UNTIL.set(until_s)
            step = self._settings.schedule.due(counted_from(done, until_s), time.time())
        if step is None:
            return None
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return Round(begun, "export", step, incumbent)

    async def _go_on(self, going: Round) -> Round | None:
        """To the end of a round (None), or until it waits for its trial."""
        while (after := await self._part(going)) is not None:
            if after == going:
                return going
            going = replace(after, failures=0)
            self._keep(going)
        if going.stage == "export":
            logger.info("round %s: too little has happened since %s", going.id, going.incumbent)
        await self._end(going)
        return None

    def _keep(self, going: Round) -> None:
        """From here a learner that is killed goes on."""
        self._file.write(going)
        logger.info("round %s, %s: %s", going.id, going.step, going.stage)

    async def _part(self, going: Round) -> Round | None:
        training, serving = self._training, self._serving
        match going.stage:
            case "export":
                return await training.export(going)
            case "candidate":
                return await training.candidate(going)
            case "judge":
                return await training.judge(going)
            case "final":
                return await training.final(going)
            case "publish":
                return await serving.publish(going, training.final_folder(going))
            case "states":
                return await training.states(going)
            case "switch":
                return await serving.switch(going)
            case "settle":
                return await serving.settle(going)
            case "watch":
                return await serving.watch(going)
        assert_never(going.stage)

    async def _end(self, going: Round) -> None:
        self._file.clear()
        self._training.tidy()
        if going.stage != "export":
            await self._serving.prune()

    def _under_way(self) -> Round | None:
        try:
            return self._file.read()
        except (OSError, ValueError):
            return None

    async def _failed(self, going: Round | None, error: Exception) -> float:
        """Says why, and how long to wait."""
        self._failures += 1
        part = "begin" if going is None else going.stage
        metrics.FAILURES.labels(part).inc()
        why = " ".join(str(error).split()) or type(error).__name__
        over = going is not None and going.stage not in _LAST and going.failures + 1 >= ATTEMPTS
        pause = min(_FIRST_PAUSE_S * 2.0 ** (self._failures - 1), _LONGEST_PAUSE_S)
        then = "given up" if over else f"tried again in {in_words(pause)}"
        logger.error(
            "%s failed, %s: %s", part, then, why, exc_info=not isinstance(error, _FORESEEN)
        )
        try:
            if going is not None:
                what: What = "given up" if over else "failed"
                entry = about(going, what, reason=f"{part}: {why}", seconds=going.seconds)
                await asyncio.to_thread(self._journal.append, entry)
                if over:
                    self._file.clear()
                    metrics.ROUNDS.labels("given up").inc()
                else:
                    self._file.write(replace(going, failures=going.failures + 1))
        except Exception as second:  # such as a disk that is full
            logger.error("not written down: %s", second)
        return pause

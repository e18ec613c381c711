"""The second half of a round: a trained model is published, served, watched, and taken back where
it can't be served.

Each part first looks at how far it got before, so that nothing is done twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

from learning import metrics
from learning.admin import Admin, Served
from learning.journal import Journal, about, newest, now
from learning.lease import Lease
from learning.round import Round
from learning.settings import LearnSettings
from model.artefact_store import ArtefactStore
from model.journal import Entry, What

logger = logging.getLogger(__name__)

SETTLE_LOOK_S = 1.0
TAKEN_BACK: tuple[What, ...] = ("taken back", "rolled back")


class Serving:
    """Parts return the round as it goes on, or None where it ends. Raises AdminError,
    ArtefactStoreError, OSError, StoreError, and LeaseHeld before anything is changed."""

    def __init__(
        self, settings: LearnSettings, models: ArtefactStore, journal: Journal, admin: Admin,
        lease: Lease,
    ) -> None:  # fmt: skip
        self._settings, self._models, self._journal = settings, models, journal
        self._admin, self._lease = admin, lease

    async def publish(self, going: Round, folder: Path) -> Round:
        """Into the models folder."""
        assert going.name is not None
        await self._lease.hold()
        await asyncio.to_thread(self._models.publish, folder, going.name)
        await self._note(going, "published", figures=going.figures, seconds=going.seconds)
        metrics.PUBLISHED_AT.set_to_current_time()
        served = await self._admin.served()
        return replace(going, stage="states", replaced=served.base)

    async def switch(self, going: Round) -> Round | None:
        """On trial, or for everybody."""
        assert going.name is not None
        served = await self._admin.served()
        share = 1.0 if going.step == "scoring" else self._settings.trial_share
        if not _has(served, going.name):
            decided = going.name in served.decisions
            if decided or await self._was(going, *TAKEN_BACK, "trial", "promoted"):
                await self._ended(going, served)
                return None
            await self._lease.hold()
            await self._admin.set(going.name, share)
        on_trial = share < 1
        await self._note(going, "trial" if on_trial else "promoted", **_replaced(going, on_trial))
        now = time.time()
        return replace(going, stage="settle", served_at=now, settling_since=now)

    async def settle(self, going: Round) -> Round | None:
        """Until every process serves it."""
        assert going.name is not None
        assert going.settling_since is not None
        while True:
            served = await self._admin.served()
            if not _has(served, going.name):
                await self._ended(going, served)
                return None
            if not served.behind and not served.faults:
                return replace(going, stage="watch")
            if time.time() - going.settling_since > self._settings.settle_s:
                why = next(iter(served.faults), f"{served.behind} processes have not taken it over")
                await self._take_back(going, served, why)
                return None
            await asyncio.sleep(SETTLE_LOOK_S)

    async def watch(self, going: Round) -> Round | None:
        """One look at a trial; the same round: it goes on."""
        assert going.name is not None
        assert going.served_at is not None
        served = await self._admin.served()
        if going.name not in served.trials:
            await self._ended(going, served)
            return None
        if served.faults:
            return replace(going, stage="settle", settling_since=time.time())
        if time.time() - going.served_at < self._settings.trial_longest_s:
            return going
        await self._take_back(going, served, "the service did not decide its trial in time")
        return None

    async def prune(self) -> None:
        """Removes old models of the learner: none that is served, on trial, or gone back to."""
        served = await self._admin.served()
        there = await asyncio.to_thread(self._models.names)
        entries = await asyncio.to_thread(self._journal.entries)
        ours = [one.model for one in entries if one.what == "published" and one.model in there]
        before = newest(entries, "promoted", model=served.base) if served.base else None
        kept = {served.base, *served.trials, before.replaced if before else None}
        kept.update(ours[-self._settings.keep :])
        for name in ours:
            if name is not None and name not in kept:
                await self._lease.hold()
                await asyncio.to_thread(self._models.remove, name)
                await asyncio.to_thread(self._journal.append, Entry(now(), "pruned", model=name))

    async def note_rollback(self, served: Served, incumbent: str | None) -> None:
        """Writes down that a person has had everybody go back from the model promoted last to one
        that they had before, where `roll_back` has not: through the page, or the API."""
        entries = await asyncio.to_thread(self._journal.entries)
        last = newest(entries, "promoted")
        if last is None or last.model == incumbent or not served.version:
            return
        place = entries.index(last)
        before = {last.replaced, *(one.model for one in entries[:place] if one.what == "promoted")}
        ended = newest(entries[place:], *TAKEN_BACK, model=last.model) is not None
        if served.base in before and not ended:
            entry = Entry(now(), "rolled back", model=last.model, reason=gone_back(served.base))
            await asyncio.to_thread(self._journal.append, entry)

    async def _ended(self, going: Round, served: Served) -> None:
        """The model is what everybody has now, or nobody has it any more."""
        assert going.name is not None
        if served.base == going.name:
            await self._note(going, "promoted", **_replaced(going, False))
            metrics.ROUNDS.labels("promoted").inc()
            return
        if not await self._was(going, *TAKEN_BACK):
            if why := served.decisions.get(going.name):
                await self._note(going, "taken back", reason=why)
            else:
                await self._note(going, "rolled back", reason=gone_back(served.base))
        metrics.ROUNDS.labels("taken back").inc()

    async def _take_back(self, going: Round, served: Served, why: str) -> None:
        assert going.name is not None
        logger.error("%s is taken back: %s", going.name, why)
        await self._lease.hold()
        if going.name in served.trials:
            await self._admin.end_trial(going.name)
        else:
            await go_back(self._admin, going.replaced)
        await self._note(going, "taken back", reason=why)
        metrics.ROUNDS.labels("taken back").inc()

    async def _note(self, going: Round, what: What, **more: object) -> None:
        """An entry, once."""
        if not await self._was(going, what):
            logger.info("%s: %s", going.name, what)
            entry = about(going, what, **more)
            await asyncio.to_thread(self._journal.append, entry)

    async def _was(self, going: Round, *what: What) -> bool:
        entries = await asyncio.to_thread(self._journal.entries)
        return newest(entries, *what, model=going.name) is not None


def gone_back(base: str | None) -> str:
    """Why a model is served no more that a person has rolled back."""
    return f"back to {base or 'what the service was started with'}"


async def go_back(admin: Admin, name: str | None) -> None:
    """Sets a model for everybody; None: what each process was started with."""
    if name is None:
        await admin.clear()
    else:
        await admin.set(name, 1.0)


def _has(served: Served, name: str) -> bool:
    return name == served.base or name in served.trials


def _replaced(going: Round, on_trial: bool) -> dict[str, str | None]:
    return {} if on_trial else {"replaced": going.replaced}

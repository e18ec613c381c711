"""The models of a process as the store wants them: opened beside the old ones, then switched to.

A request is answered to its end by the models that it began with. A model that can't be opened
changes nothing but what is said of it: the ones before serve on, and it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import torch

from model.artefact import ArtefactError
from service.models.active import Active, ActiveModels, Arm
from service.models.lineup import Lineup
from service.models.model_folder import ModelFolder, ModelNameError
from service.models.served_model import ServedModel, ServingContext, open_model
from service.observe import metrics
from service.store.store import StoreError

logger = logging.getLogger(__name__)

RETRY_EVERY_S = 10.0
REPORT_EVERY_S = 5.0


class Models:
    """Args:
    folder: where models may come from; None: what the process was started with stays.
    poll_s: how often the store is asked.

    Attributes:
        fault: why something else serves than is set; None: it does not.
    """

    def __init__(
        self,
        around: ServingContext,
        active: ActiveModels,
        folder: ModelFolder | None,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self.active, self.folder = active, folder
        self.fault: str | None = None
        self._around, self._poll_s = around, poll_s
        self._lineup: Lineup | None = None
        self._wanted: Active | None = None  # what was tried last
        self._taken = 0
        self._own: str | None = None  # the identity of what the process was started with
        self._open: dict[str, ServedModel] = {}
        self._leaving: set[Lineup] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()  # opens and closes
        self._moving: dict[str, ServedModel] = {}
        self._moved = 0
        self._reported: dict[str, Any] | None = None
        self._report_at = self._retry_at = 0.0

    @property
    def lineup(self) -> Lineup:
        """What serves now, once `open` has returned."""
        assert self._lineup is not None
        return self._lineup

    async def open(self) -> None:
        """Opens what is set; if that can't be, what the process was started with.

        Raises:
            ArtefactError: nothing can be served.
            StoreError: the store does not answer.
        """
        if self.folder is not None:
            await self.active.serving()  # forgets those that are gone
            if await self._follow():
                return
        self._lineup = Lineup(await self._opened(None))

    async def close(self) -> None:
        """Ends all models, whoever still holds them."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for model in list(self._open.values()):
            await model.close()
        self._open.clear()

    @asynccontextmanager
    async def followed(self, show: Callable[[Lineup], None]) -> AsyncIterator[None]:
        """Follows the store meanwhile. `show` is called with what begins to serve."""
        if self.folder is None:
            yield
            return
        task = asyncio.create_task(self._keep_following(show))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            try:
                await self.active.leave()
            except StoreError as error:
                logger.debug("not told that this process ends: %s", error)

    def serving(self) -> dict[str, Any]:
        """What this process says of itself, as JSON values."""
        lineup = self.lineup
        return {
            "version": self._taken,
            "base": _described(lineup.base),
            "trial": None if lineup.trial is None else _described(lineup.trial),
            "share": lineup.share,
            "fault": self.fault,
            "moved_users": self._moved,
            "waiting_users": len(self._moving),
        }

    # -- following -----------------------------------------------------------------------

    async def _keep_following(self, show: Callable[[Lineup], None]) -> None:
        reading = True
        while True:
            try:
                if await self._follow():
                    show(self.lineup)
                self._count_moved()
                await self._report()
                reading = True
            except StoreError as error:
                if reading:  # said once, not every second
                    logger.warning("which model is to be served is not known: %s", error)
                reading = False
            except Exception:
                logger.exception("models not followed")
            await asyncio.sleep(self._poll_s)

    async def _follow(self) -> bool:
        """Takes over what is set; whether something else serves now."""
        try:
            wanted = await self.active.read()
        except ValueError as error:
            self._fail(str(error))
            return False
        due = self.fault is not None and time.monotonic() >= self._retry_at
        if wanted == self._wanted and not due:
            return False
        self._wanted = wanted
        try:
            return await self._take_over(wanted)
        except StoreError:
            self._wanted = None
            raise
        except Exception as error:
            if not isinstance(error, ArtefactError | ModelNameError):
                logger.exception("version %d of the models can't be served", wanted.version)
            self._fail(f"version {wanted.version} can't be served: {error}")
            return False

    async def _take_over(self, wanted: Active) -> bool:
        async with self._lock:
            opened: list[ServedModel] = []
            try:
                base = await self._opened(wanted.base)
                opened.append(base)
                trial = None
                if wanted.trial is not None:
                    trial = await self._opened(wanted.trial)
                    opened.append(trial)
            except BaseException:
                await self._close_unused(opened)
                raise
            old, self._lineup = self._lineup, Lineup(base, trial, wanted.share)
            self._taken, self.fault = wanted.version, None
        metrics.MODEL_BEHIND.set(0)
        metrics.MODEL_CHANGES["taken"].inc()
        if old is not None:
            logger.info(
                "version %d of the models: %s",
                wanted.version,
                ", ".join(f"{one.name} {one.identity}" for one in self.lineup.models),
            )
            self._begin_moving(old)
            self._leaving.add(old)
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return True

    async def _opened(self, arm: Arm | None) -> ServedModel:
        """The model of an arm; None: the one that the process was started with."""
        identity = self._own if arm is None else arm.identity
        if identity is not None and identity in self._open:
            return self._open[identity]
        if arm is None:
            model = await open_model(self._around.settings.artefact, self._around)
            self._own = model.artefact.identity
        else:
            assert self.folder is not None
            path = await asyncio.to_thread(self.folder.find, arm.name)
            model = await open_model(path, self._around, arm.identity)
        self._open[model.artefact.identity] = model
        return model

    def _fail(self, fault: str) -> None:
        self._retry_at = time.monotonic() + RETRY_EVERY_S
        metrics.MODEL_BEHIND.set(1)
        metrics.MODEL_CHANGES["failed"].inc()
        if fault != self.fault:  # said once
            logger.error("%s; the models before serve on", fault)
        self.fault = fault

    # -- the old ones --------------------------------------------------------------------

    async def _retire(self, old: Lineup) -> None:
        await old.retire()
        self._leaving.discard(old)
        async with self._lock:
            await self._close_unused(old.models)
        del old  # the last that holds its models
        if self._around.device.startswith("cuda"):  # what torch keeps for itself is not free
            await asyncio.to_thread(torch.cuda.empty_cache)

    async def _close_unused(self, models: tuple[ServedModel, ...] | list[ServedModel]) -> None:
        lineups = [*self._leaving, *([self._lineup] if self._lineup else [])]
        used = {model for lineup in lineups for model in lineup.models}
        for model in models:
            identity = model.artefact.identity
            if model not in used and self._open.get(identity) is model:
                del self._open[identity]
                await model.close()
                logger.info("model %s is served no more", model.identity)

    # -- what is told --------------------------------------------------------------------

    def _begin_moving(self, old: Lineup) -> None:
        """From now on the users are waited for whose states another model has now."""
        self._moving, self._moved = {}, 0
        for model in old.models:
            for user in model.engine.pool.users():
                now = self.lineup.of(user)
                if now is not model and old.of(user) is model:
                    self._moving[user] = now

    def _count_moved(self) -> None:
        residents = {model: set(model.engine.pool.users()) for model in self.lineup.models}
        there = [u for u, now in self._moving.items() if u in residents.get(now, ())]
        for user in there:
            del self._moving[user]
        self._moved += len(there)
        metrics.MOVED_USERS["moved"].set(self._moved)
        metrics.MOVED_USERS["waiting"].set(len(self._moving))

    async def _report(self) -> None:
        serving, now = self.serving(), time.monotonic()
        if serving != self._reported or now >= self._report_at:
            await self.active.report(serving)
            self._reported, self._report_at = serving, now + REPORT_EVERY_S


def _described(model: ServedModel) -> dict[str, str]:
    return {
        "name": model.name,
        "identity": model.artefact.identity,
        "model": model.identity,
    }

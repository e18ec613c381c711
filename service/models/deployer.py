"""Deploys what the registry says: the new models are opened beside the old ones, then switched to.

A request is answered to its end by the models that it began with. A model that can't be opened
changes nothing but what is said of it: the ones before serve on, and it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import torch

from model.artefact import ArtefactError
from model.artefact_store import ArtefactStoreError
from service.models.deployment import Deployment
from service.models.model_folder import ModelFolder
from service.models.moves import Moves
from service.models.open_models import OpenModels
from service.models.registry import ModelRegistry
from service.models.served_model import ServedModel
from service.models.serving_context import ServingContext
from service.models.traffic_split import TrafficSplit
from service.observe import metrics
from service.store.errors import StoreError
from service.store.follower import Follower

logger = logging.getLogger(__name__)

RETRY_EVERY_S = 10.0
REPORT_EVERY_S = 5.0


class Deployer:
    """Attributes:
    folder: where models may come from; None: what the process was started with stays.
    deployment: what serves now, once `open` has returned.
    fault: why something else serves than is set; None: it does not.
    """

    deployment: Deployment

    def __init__(self, context: ServingContext, registry: ModelRegistry) -> None:
        settings = context.settings
        self.registry = registry
        self.folder = None
        if settings.models_dir is not None:
            self.folder = ModelFolder(settings.models_dir, settings.fetched_models)
        self.fault: str | None = None
        self._context = context
        self._open_models = OpenModels(context, self.folder)
        self._tried: TrafficSplit | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._moves = Moves()
        self._reported: dict[str, Any] | None = None
        self._report_at = self._retry_at = 0.0

    async def open(self) -> None:
        """Opens what is set; if that can't be, what the process was started with.

        Raises:
            ArtefactError, ArtefactStoreError: nothing can be served.
            StoreError: the store does not answer.
        """
        if self.folder is not None:
            await self.registry.serving()  # forgets those that are gone
            new = await self._changed()
            if new is not None:
                self.deployment = new
                return
        self.deployment = Deployment(TrafficSplit(), await self._open_models.open(None))

    async def close(self) -> None:
        """Ends all models, whoever still holds them."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._open_models.close_all()

    @asynccontextmanager
    async def following(self, show: Callable[[Deployment], None]) -> AsyncIterator[None]:
        """Follows the registry meanwhile. `show` is called with what begins to serve."""
        if self.folder is None:
            yield
            return

        async def follow() -> None:
            new = await self._reported_meanwhile(self._changed())
            if new is not None:
                self._switch(new)
                show(new)
            self._moves.count()
            await self._report()

        every_s = self._context.settings.model_poll_s
        try:
            async with Follower(follow, every_s, "which model is to be served is not known"):
                yield
        finally:
            try:
                await self.registry.leave()
            except StoreError as error:
                logger.debug("not told that this process ends: %s", error)

    def serving(self) -> dict[str, Any]:
        """What this process says of itself, as JSON values."""
        now = self.deployment
        return {
            "version": now.split.version,
            "base": _described(now.base),
            "trials": [
                _described(model) | {"share": trial.share}
                for trial, model in zip(now.split.trials, now.trials, strict=True)
            ],
            "fault": self.fault,
            "moved_users": self._moves.moved,
            "waiting_users": self._moves.waiting,
        }

    async def _changed(self) -> Deployment | None:
        """What is set, where it is not what serves; None: it is, or can't be served."""
        try:
            split = await self.registry.read()
        except ValueError as error:
            self._fail(str(error))
            return None
        due = self.fault is not None and time.monotonic() >= self._retry_at
        if split == self._tried and not due:
            return None
        self._tried = split
        try:
            new = await self._opened(split)
        except StoreError:
            self._tried = None
            raise
        except Exception as error:
            if not isinstance(error, ArtefactError | ArtefactStoreError):
                logger.exception("version %d of the models can't be served", split.version)
            self._fail(f"version {split.version} can't be served: {error}")
            return None
        self.fault = None
        metrics.MODEL_BEHIND.set(0)
        metrics.MODEL_CHANGES["taken"].inc()
        return new

    async def _reported_meanwhile(
        self, changed: Coroutine[Any, Any, Deployment | None]
    ) -> Deployment | None:
        """While a model is being fetched this process is not taken for one that has ended."""
        changing = asyncio.create_task(changed)
        try:
            while not (await asyncio.wait({changing}, timeout=REPORT_EVERY_S))[0]:
                with suppress(StoreError):
                    await self._report()
            return changing.result()
        finally:
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)

    async def _opened(self, split: TrafficSplit) -> Deployment:
        opened: list[ServedModel] = []
        try:
            for variant in (split.base, *(trial.variant for trial in split.trials)):
                opened.append(await self._open_models.open(variant))
        except BaseException:
            for model in opened:
                await self._open_models.close(model)
            raise
        base, *trials = opened
        return Deployment(split, base, trials)

    def _fail(self, fault: str) -> None:
        self._retry_at = time.monotonic() + RETRY_EVERY_S
        metrics.MODEL_BEHIND.set(1)
        metrics.MODEL_CHANGES["failed"].inc()
        if fault != self.fault:  # said once
            logger.error("%s; the models before serve on", fault)
        self.fault = fault

    def _switch(self, new: Deployment) -> None:
        named = ", ".join(f"{one.name} {one.edition}" for one in new.models)
        logger.info("version %d of the models: %s", new.split.version, named)
        self._moves.begin(self.deployment, new)
        task = asyncio.create_task(self._retire(self.deployment))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        self.deployment = new

    async def _retire(self, old: Deployment) -> None:
        await old.retire()
        models = list(old.models)
        del old
        while models:  # of an ended one nothing is kept here, so that its memory is free
            await self._open_models.close(models.pop())
        if self._context.device.startswith("cuda"):  # what torch keeps for itself is not
            await asyncio.to_thread(torch.cuda.empty_cache)

    async def _report(self) -> None:
        serving, now = self.serving(), time.monotonic()
        if serving != self._reported or now >= self._report_at:
            await self.registry.report(serving)
            self._reported, self._report_at = serving, now + REPORT_EVERY_S


def _described(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "identity": model.artefact.edition,
        "model": model.identity,
        "edition": model.edition,
        "kinds": None if model.artefact.kinds is None else str(model.artefact.kinds),
    }

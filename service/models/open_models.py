"""The models in memory, each once however many deployments have it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path

from model.artefact_store import local_artefact
from service.engine.adoption import adopt
from service.models.model_folder import ModelFolder
from service.models.served_model import ServedModel, open_model
from service.models.serving_context import ServingContext
from service.models.traffic_split import Variant

logger = logging.getLogger(__name__)


class OpenModels:
    """Args:
    folder: where variants are; None: there are none.
    """

    def __init__(self, context: ServingContext, folder: ModelFolder | None) -> None:
        self._context, self._folder = context, folder
        self._models: dict[str, ServedModel] = {}  # by the artefact's edition
        self._uses: Counter[str] = Counter()
        self._own: str | None = None  # the edition of what the process was started with
        self._lock = asyncio.Lock()

    async def open(self, variant: Variant | None) -> ServedModel:
        """A variant's model, until `close`; None: what the process was started with.

        Raises:
            ArtefactError, ArtefactStoreError: it can't be served.
            StoreError: the store does not answer.
        """
        async with self._lock:
            edition = self._own if variant is None else variant.identity
            model = self._models.get(edition) if edition else None
            if model is None:
                model = await self._opened(variant)
                await self._adopt_states(model)
                self._models[model.artefact.edition] = model
            self._uses[model.artefact.edition] += 1
            return model

    async def close(self, model: ServedModel) -> None:
        """Ends a model, if nobody else has opened it too."""
        edition = model.artefact.edition
        async with self._lock:
            self._uses[edition] -= 1
            if not self._uses[edition]:
                del self._models[edition]
                await model.close()
                logger.info("model %s is served no more", model.edition)

    async def close_all(self) -> None:
        """Ends all, whoever still has them."""
        for model in list(self._models.values()):
            await model.close()
        self._models.clear()

    async def _adopt_states(self, model: ServedModel) -> None:
        """From an open one that differs in how it scores only."""
        alike = [other for other in self._models.values() if other.identity == model.identity]
        try:
            if alike:
                await adopt(model.engine, alike[0].engine)
        except BaseException:
            await model.close()
            raise

    async def _opened(self, variant: Variant | None) -> ServedModel:
        if variant is None:
            settings = self._context.settings
            folder = await asyncio.to_thread(
                local_artefact, settings.artefact, settings.fetched_models
            )
            model = await open_model(folder, self._context)
            self._own = model.artefact.edition
            return model
        assert self._folder is not None
        edition = variant.identity if variant.live else None  # without its mixture it has another
        path = await asyncio.to_thread(self._folder.find, variant.name, edition)
        model = await open_model(path, self._context, variant)
        # Its folder's parent is an edition if it was fetched, as `tim4rec serve` does at the start.
        own = Path(self._context.settings.artefact).parent.name
        await asyncio.to_thread(self._prune, {*self._models, path.parent.name, own})
        return model

    def _prune(self, in_use: set[str]) -> None:
        assert self._folder is not None
        try:
            self._folder.prune(in_use)
        except OSError as error:
            logger.warning("models that are used no more are not deleted: %s", error)

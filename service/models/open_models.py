"""The models in memory, each once however many deployments have it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

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
        self._models: dict[str, ServedModel] = {}  # by the artefact's identity
        self._uses: Counter[str] = Counter()
        self._own: str | None = None  # the identity of what the process was started with
        self._lock = asyncio.Lock()

    async def open(self, variant: Variant | None) -> ServedModel:
        """A variant's model, until `close`; None: what the process was started with.

        Raises:
            ArtefactError, ModelNameError: it can't be served.
            StoreError: the store does not answer.
        """
        async with self._lock:
            identity = self._own if variant is None else variant.identity
            model = self._models.get(identity) if identity else None
            if model is None:
                model = await self._opened(variant)
                self._models[model.artefact.identity] = model
            self._uses[model.artefact.identity] += 1
            return model

    async def close(self, model: ServedModel) -> None:
        """Ends a model, if nobody else has opened it too."""
        identity = model.artefact.identity
        async with self._lock:
            self._uses[identity] -= 1
            if not self._uses[identity]:
                del self._models[identity]
                await model.close()
                logger.info("model %s is served no more", model.identity)

    async def close_all(self) -> None:
        """Ends all, whoever still has them."""
        for model in list(self._models.values()):
            await model.close()
        self._models.clear()

    async def _opened(self, variant: Variant | None) -> ServedModel:
        if variant is None:
            model = await open_model(self._context.settings.artefact, self._context)
            self._own = model.artefact.identity
            return model
        assert self._folder is not None
        path = await asyncio.to_thread(self._folder.find, variant.name)
        return await open_model(path, self._context, variant.identity)

"""A model with all that answers by it, from its folder to the end of its last request."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from model.artefact import Artefact, ArtefactError, load_artefact
from model.kernels import KernelsUnavailable, choose
from model.kinds import KindRules
from model.trained_kinds import agreed_kinds
from service.catalogue.catalogue import Catalogue
from service.catalogue.exploration import Exploration
from service.catalogue.retrieval import open_retrieval
from service.engine.capacity import pool_rows
from service.engine.engine import Engine
from service.engine.exactness import ExactnessSampler
from service.engine.explanation import Explainer
from service.engine.quality import QualitySampler
from service.models.live_items import follow_evidence, new_items_noted
from service.models.serving_context import ServingContext
from service.models.traffic_split import Variant
from service.observe import metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """Attributes:
    name: its folder's.
    identity: that of all its states, what the service's settings decide included.
    edition: the same with what decides scores only.
    exploration: None: nothing is explored.
    """

    name: str
    artefact: Artefact
    engine: Engine
    catalogue: Catalogue
    explainer: Explainer
    exploration: Exploration | None
    _ends: AsyncExitStack

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def edition(self) -> str:
        return self.engine.edition

    async def close(self) -> None:
        """Finishes what is under way and frees its memory."""
        await self._ends.aclose()


async def open_model(
    folder: Path, context: ServingContext, variant: Variant | None = None
) -> ServedModel:
    """Loads an artefact beside what is served, and warms it up.

    Args:
        variant: what it is to be; None: whatever the folder holds, with its mixture.

    Raises:
        ArtefactError: the folder can't be served, or holds another one.
        StoreError: the store does not answer.
    """
    settings, log = context.settings, context.log

    def load() -> tuple[str, Artefact, Engine, Catalogue]:
        artefact = load_artefact(folder, context.device)
        rules = KindRules.parse(settings.kinds)
        require_kinds(artefact, rules)
        model = artefact.model
        try:
            model.use(choose(settings.kernels, model.device))
        except KernelsUnavailable as error:
            raise ArtefactError(f"kernels {settings.kernels}: {error}") from None
        if variant is not None:
            artefact = artefact if variant.live else artefact.without_mixture()
            if variant.identity != artefact.edition:
                raise ArtefactError(
                    f"{folder} holds model {artefact.edition} and not {variant.identity}, which "
                    "was set: use a new folder for each model"
                )
        retrieval = open_retrieval(artefact, settings.retrieval, settings.data_dir / "index")
        catalogue = Catalogue(artefact, context.records, retrieval)
        sample = settings.quality_sample
        models = 1 if settings.models_dir is None else 1 + settings.max_trials
        engine = Engine(
            artefact,
            log,
            pool_capacity=pool_rows(
                settings.pool_capacity, model.state_layout, model.device, models
            ),
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_wait_s=settings.max_wait_s,
            snapshot_every=settings.snapshot_every,
            snapshot_ttl_s=settings.snapshot_ttl_s,
            snapshot_precision=settings.snapshot_precision,
            erasure_poll_s=settings.erasure_poll_s,
            retrieval=retrieval,
            listeners=context.listeners,
            kinds=rules,
            store_away=settings.store_away,
            quality=QualitySampler(sample, catalogue.row) if sample else None,
        )
        if context.live is not None:
            follow_evidence(retrieval, artefact, catalogue, context.live)
        return folder.resolve().name, artefact, engine, catalogue

    # In a thread: requests are answered meanwhile.
    name, artefact, engine, catalogue = await asyncio.to_thread(load)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(catalogue.followed(settings.catalogue_poll_s))
        retrieval, live = engine.runner.retrieval, context.live
        if live is not None and retrieval.live is not None and settings.live_new_items:
            await stack.enter_async_context(new_items_noted(catalogue, live))
        context.popularity.show(retrieval, catalogue.row)
        stack.callback(context.popularity.forget, retrieval)
        exploration = None
        if context.item_counts is not None:
            exploration = Exploration(settings.explore_share, artefact.scored_items.popularity)
            context.item_counts.show(exploration, catalogue.row)
            stack.callback(context.item_counts.forget, exploration)

        async def stop_engine() -> None:
            try:
                async with asyncio.timeout(context.drain.left_s(settings.shutdown_s)):
                    await engine.stop()
            except TimeoutError:
                logger.warning("given up: what was under way did not end within shutdown_s")

        stack.push_async_callback(stop_engine)
        await engine.start()
        explainer = Explainer(engine, most_events=settings.explain_events)
        stack.callback(explainer.close)
        if settings.exactness_every_s:
            sampler = ExactnessSampler(
                engine,
                every_s=settings.exactness_every_s,
                max_events=settings.exactness_max_events,
                tolerance=settings.exactness_tolerance,
                latest=context.differences,
            )
            await stack.enter_async_context(sampler.running())
        config = artefact.model.config
        info = metrics.MODEL.labels(
            engine.identity,
            engine.edition,
            name,
            config.time,
            str(config.n_items),
            settings.snapshot_precision,
        )
        info.set(1)
        stack.callback(info.set, 0)
        if (until_ms := _trained_until(artefact)) is not None:
            metrics.MODEL_UNTIL.labels(engine.edition).set(until_ms / 1000)
        return ServedModel(
            name, artefact, engine, catalogue, explainer, exploration, stack.pop_all()
        )
    raise AssertionError("not reached")


def require_kinds(artefact: Artefact, rules: KindRules) -> None:
    """Raises KindsDiffer where a service goes by other rules than the model was trained by: its log
    would mean something else to the model."""
    fix = (
        f"train it by the service's, or start the service anew with TIM4REC_KINDS="
        f"{artefact.kinds} and, this once, TIM4REC_CHANGE_SHARED_SETTINGS=true"
    )
    agreed_kinds(rules, {artefact.folder.name: artefact.kinds}, fix)


def _trained_until(artefact: Artefact) -> int | None:
    try:
        return artefact.until_ms
    except ValueError:  # nothing that is served depends on it
        return None

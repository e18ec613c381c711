"""The FastAPI application: its parts put together, from start to stop."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from model.artefact_store import local_artefact
from model.kinds import KindRules
from model.live.evidence import EvidenceRules
from model.trained_kinds import KindsDiffer, trained_kinds
from service import vitals
from service.addresses import networks
from service.bulk.example_people import ExamplePeople
from service.bulk.user_listing import UserListing
from service.catalogue.cursor import shared_seal
from service.catalogue.item_store import ItemStore
from service.engine.listener import Listener
from service.environment import SettingsError, read_settings
from service.feedback.item_counts import ItemCounts
from service.feedback.outcomes import Outcomes
from service.feedback.popularity import Popularity
from service.feedback.trial_counts import TrialCounts
from service.http import problems
from service.http.access_control import AccessControl
from service.http.bodies import ReadBodies
from service.http.cross_origin import answering_other_origins
from service.http.dependencies import HoldModels, Services, declared_key, require_known_query
from service.http.direct import AnswerDirectly
from service.http.load_shedder import LoadShedder
from service.http.observer import ObserveRequests
from service.http.request_line import ReadRequestLine, UnderPrefix
from service.http.routes import (
    admin,
    health,
    interactions,
    items,
    journal,
    page,
    popular,
    rank,
    recommend,
    session,
    users,
)
from service.http.schemas import Problem
from service.keys import Keys
from service.lifecycle import STARTUP_FAILURE, Drain
from service.live.checkpoint import Checkpoints
from service.live.feed import Feed
from service.live.feed_writer import FeedWriter
from service.live.live_evidence import LiveEvidence
from service.models.decider import Decider
from service.models.deployer import Deployer
from service.models.deployment import Deployment
from service.models.registry import ModelRegistry
from service.models.serving_context import ServingContext
from service.observe import compilation, logs, metrics
from service.settings import Settings, secrets
from service.store.backup_marks import BackupMarks
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.errors import StoreError
from service.store.event_log import EventLog
from service.store.record_keys import RecordKeys
from service.store.shared_settings import SettingsDiffer, SharedSettings, tell_changes

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 0.5
_ABOUT = """
Store what users do with `POST /interactions`, and ask what they would like next with
`GET /recommend`. Try both here: choose one, *Try it out*, *Execute*. Where the service has keys,
give yours under *Authorize*; `/admin` and the list of users want an admin key.

The guides are in the folder `docs`: `api.md` says what a caller has to know, `operate.md` how to
run the service, `learn.md` how it keeps learning.
"""
SENT = (408, 413, 415, 421, 431, 503)
"""What is answered where a request does not arrive as a whole."""


def create_app(settings: Settings | None = None) -> Application:
    """The service, for a server that runs it in this process.

    settings None: those of the environment, and logging is configured by them; a server's
    `--factory` calls it so. Wrong ones end the process with one line. At its start, those that
    processes share are compared; others' have been already.
    """
    alone = settings is None
    if settings is None:
        try:
            settings = read_settings()
        except SettingsError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(STARTUP_FAILURE)
        logs.configure(settings.log_level, settings.log_format)
    chosen, drain, tracing = settings, Drain(), None
    if chosen.tracing:
        from service.observe.tracing import Tracing  # of an extra

        tracing = Tracing()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(tracing.close)
            try:
                # Whoever was the first to ask for the document would hold the event loop.
                with compilation.logged():
                    app.state.services, _ = await asyncio.gather(
                        _assemble(chosen, drain, stack, alone), asyncio.to_thread(app.openapi)
                    )
            except (SettingsDiffer, KindsDiffer, StoreError) as error:
                app.state.fault = str(error)
                raise

            def show(deployment: Deployment) -> None:
                # Of the ones before nothing may be kept: they hold models.
                now = app.state.services
                app.state.services = replace(now, deployment=deployment, served=deployment.base)

            await stack.enter_async_context(app.state.services.deployer.following(show))
            yield {"drain": drain, "load_shedder": load_shedder}
            app.state.services = None

    app = FastAPIOffline(  # its documentation page needs no network
        title="TiM4Rec",
        summary="Online recommendation with a constant-size step per interaction",
        description=_ABOUT,
        version="0.1.0",
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.services, app.state.drain, app.state.fault = None, drain, None
    guarded = [declared_key, Depends(require_known_query)]
    nouns = (interactions, recommend, rank, session, items, popular, users)
    routers = [noun.router for noun in nouns]
    load_shedder = LoadShedder(
        app, [noun.router for noun in (interactions, recommend, rank, session)]
    )
    for router in routers:
        app.include_router(router, dependencies=guarded, responses=problems.declared(401, *SENT))
    administered = problems.declared(401, 403, *SENT)
    app.include_router(admin.router, dependencies=[declared_key], responses=administered)
    app.include_router(recommend.admin, dependencies=guarded, responses=administered)
    app.include_router(journal.router, dependencies=guarded, responses=administered)
    app.include_router(health.router)
    if chosen.page:
        app.state.page_metrics = page.MetricsReader()
        app.include_router(page.router)
        app.include_router(page.data, dependencies=guarded)
    problems.install(app)
    _declare_problems(app)
    front: ASGIApp = AnswerDirectly(UnderPrefix(app), owner=app, routers=routers)
    front = HoldModels(front, owner=app)
    front = ReadBodies(front, settings=chosen, routers=routers)
    front = AccessControl(
        front,
        settings=chosen,
        keys=Keys(secrets(chosen.api_keys), chosen.api_keys_file),
        admin_keys=Keys(secrets(chosen.admin_keys), chosen.admin_keys_file),
    )
    if chosen.cors_origins:
        front = answering_other_origins(front, chosen.cors_origins)
    front = ObserveRequests(front, log_requests=chosen.log_requests, tracing=tracing)
    named: Any = front
    named = ProxyHeadersMiddleware(named, trusted_hosts=list(chosen.trusted_proxies))
    trusted = networks(chosen.trusted_proxies)
    return Application(app, ReadRequestLine(named, root_path=chosen.root_path, trusted=trusted))


class Application:
    """The service, as servers call it.

    api: the routes and their documentation. What every request goes through stands in front of it:
        as its middleware, a direct answer would pay for the framework's own around them.
    """

    def __init__(self, api: FastAPI, front: ASGIApp) -> None:
        self.api, self._front = api, front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._front(scope, receive, send)
        else:
            await self.api(scope, receive, partial(self._tell, send))

    async def _tell(self, send: Send, message: Message) -> None:
        """What can be mended is one line; of anything else the server logs a traceback."""
        if message["type"] == "lifespan.startup.failed" and self.api.state.fault is not None:
            message = {"type": message["type"], "message": self.api.state.fault}
        await send(message)


async def _assemble(
    settings: Settings, drain: Drain, stack: AsyncExitStack, compare: bool
) -> Services:
    torch.set_num_threads(settings.threads)
    threadpool_limits(settings.threads)  # numpy's own, which otherwise spin on every core
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not settings.kinds:
        folder = await asyncio.to_thread(local_artefact, settings.artefact, settings.fetched_models)
        settings = settings.with_kinds(await asyncio.to_thread(trained_kinds, folder))
    url, embedded = settings.redis, None
    if url is None:
        embedded = EmbeddedStore(settings.data_dir, fsync=settings.fsync)
        url = stack.enter_context(embedded)
    store = await stack.enter_async_context(
        Store(url, timeout_s=settings.store_timeout_s, replica_acks=settings.replica_acks)
    )
    await store.check()
    await BackupMarks(store, RecordKeys(settings.namespace)).require_whole()
    if compare:
        shared = SharedSettings(store, namespace=settings.namespace)
        tell_changes(await shared.agree(settings.shared(), change=settings.change_shared_settings))
    log = EventLog(
        store,
        namespace=settings.namespace,
        page=max(256, 2 * settings.snapshot_every),
        dedup_window=settings.dedup_window,
        late_policy=settings.late_policy,
        replay_limit=settings.replay_limit,
        future_tolerance_ms=round(settings.future_tolerance_s * 1000),
        idle_ttl_s=settings.idle_ttl_s,
        history_limit=settings.history_limit,
    )
    disk = None if embedded is None else settings.data_dir.expanduser()
    await stack.enter_async_context(vitals.reported(log, device, disk))
    if embedded is not None:
        await stack.enter_async_context(_kept_running(embedded, log))
    seal = await shared_seal(store, namespace=settings.namespace)
    records = ItemStore(store, namespace=settings.namespace)
    popularity = Popularity(
        store,
        namespace=log.keys.namespace,
        half_life_s=settings.popular_half_life_s,
        most_items=settings.popular_items,
        copied=settings.max_k,
        least=settings.popular_least,
        heaviest=settings.max_weight,
        kinds=KindRules.parse(settings.kinds),
        refresh_s=settings.popular_refresh_s,
    )
    await stack.enter_async_context(popularity.running())
    listeners: list[Listener] = [popularity]
    outcomes = item_counts = None
    if settings.explore_share:
        item_counts = ItemCounts(
            store, namespace=log.keys.namespace, refresh_s=settings.popular_refresh_s
        )
        await stack.enter_async_context(item_counts.followed())
    if settings.outcome_window_s:
        trials = None
        if settings.models_dir is not None:
            trials = TrialCounts(
                store,
                namespace=settings.namespace,
                observed_s=settings.trial_observed_s,
                longest_s=settings.trial_longest_s,
            )
        outcomes = Outcomes(
            store,
            namespace=settings.namespace,
            window_s=settings.outcome_window_s,
            kinds=KindRules.parse(settings.kinds),
            trials=trials,
            item_counts=item_counts,
        )
        await stack.enter_async_context(outcomes.running())
        listeners.append(outcomes)
    live = None
    if settings.live:
        feed = Feed(store, namespace=settings.namespace, most=settings.live_feed_events)
        live = LiveEvidence(
            feed,
            Checkpoints(store, namespace=settings.namespace),
            EvidenceRules(settings.live_neighbours, settings.live_users),
            checkpoint_s=settings.live_checkpoint_s,
        )
        await stack.enter_async_context(live.running())
        writer = FeedWriter(
            feed, heaviest=settings.max_weight, kinds=KindRules.parse(settings.kinds)
        )
        await stack.enter_async_context(writer.running())
        listeners.append(writer)
    context = ServingContext(
        settings,
        device,
        log,
        records,
        popularity,
        outcomes,
        item_counts,
        live,
        listeners,
        seal,
        drain,
    )
    registry = ModelRegistry(store, namespace=settings.namespace)
    deployer = Deployer(context, registry)
    stack.push_async_callback(deployer.close)
    await deployer.open()
    served = deployer.deployment.base
    decider = None
    if outcomes is not None and outcomes.trials is not None:
        decider = Decider(registry, outcomes.trials, settings)
        await stack.enter_async_context(decider.running())
    metrics.READY.set(1)
    config = served.artefact.model.config
    logger.info(
        "serving model %s (%d items, time path %s) on %s, kinds %s",
        served.identity,
        config.n_items,
        config.time,
        device,
        KindRules.parse(settings.kinds),
    )
    users = UserListing(log, settings.max_wait_s)
    people = ExamplePeople(log, users)
    return Services(context, deployer, decider, deployer.deployment, served, users, people)


@asynccontextmanager
async def _kept_running(embedded: EmbeddedStore, log: EventLog) -> AsyncIterator[None]:
    """Starts the embedded server again when it dies under the service."""
    leaving = asyncio.Event()

    async def watch() -> None:
        while not leaving.is_set():
            try:
                await log.store.ping()
            except StoreError as error:
                logger.warning("starting the embedded store again: %s", error)
                try:
                    await asyncio.to_thread(embedded.ensure_running)
                except Exception as failure:  # the next round tries again
                    logger.error("the embedded store is down: %s", failure)
            with suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), WATCH_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        # Not cancelled: its thread could start a server that nobody stops.
        leaving.set()
        await watching


def _declare_problems(app: FastAPI) -> None:
    """Puts the problem document's schema into OpenAPI, in place of FastAPI's own error's."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

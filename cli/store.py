"""The store that a command works on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError
from service.lifecycle import STARTUP_FAILURE
from service.settings import Settings
from service.store.backup_marks import BackupMarks
from service.store.client import Store
from service.store.embedded import EmbeddedStore, own_directory
from service.store.errors import EmbeddedStoreError, RestoreNotEnded
from service.store.event_log import EventLog
from service.store.record_keys import RecordKeys
from service.store.shared_settings import Difference, SettingsDiffer, SharedSettings

Redis = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="redis://, rediss:// or unix:// URL of the store. None: TIM4REC_REDIS_URL, or else "
        "the embedded one in --data-dir.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the embedded store, the one that `serve` is given; a service may be "
        "running on it.",
        show_default="TIM4REC_DATA_DIR or state",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        help="Prefix of the keys, as in the service.",
        show_default="TIM4REC_NAMESPACE or tim4rec",
    ),
]

LONGEST_CALL_S = 60.0
"""For a pipeline much longer than a wave of the service, on a store that may be busy."""


def require_data_dir(settings: Settings) -> None:
    """Raise CommandError unless an embedded store could be in its folder."""
    if settings.redis is None:
        try:
            own_directory(settings.data_dir, close=False)
        except EmbeddedStoreError as error:
            raise CommandError(str(error)) from None


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Store]:
    """The store of these settings."""
    async with AsyncExitStack() as stack:
        url = settings.redis or stack.enter_context(
            EmbeddedStore(settings.data_dir, fsync=settings.fsync)
        )
        store = await stack.enter_async_context(
            Store(url, timeout_s=max(settings.store_timeout_s, LONGEST_CALL_S))
        )
        await store.check()
        yield store


async def agreed(store: Store, settings: Settings, shared: Mapping[str, str]) -> list[Difference]:
    """What of the shared settings was changed for all processes of the store.

    Raises:
        CommandError: they differ from the other processes', and were not to be changed; or a
            restore has not ended.
        StoreError: they can't be read, or not be changed.
    """
    noted = SharedSettings(store, namespace=settings.namespace)
    try:
        await BackupMarks(store, RecordKeys(settings.namespace)).require_whole()
        return await noted.agree(shared, change=settings.change_shared_settings)
    except (RestoreNotEnded, SettingsDiffer) as error:
        raise CommandError(str(error), STARTUP_FAILURE) from None


def shared_settings(settings: Settings) -> dict[str, str]:
    """Those that a command in bulk has to have like the services: late events are clamped in it
    under every policy, and rules for kinds that nobody has said are left to the service."""
    others = {"late_policy", "replay_limit"} | (set() if settings.kinds else {"kinds"})
    return {name: value for name, value in settings.shared().items() if name not in others}


async def with_noted_kinds(store: Store, settings: Settings) -> Settings:
    """With the rules for kinds that the store's processes have, where none are given here."""
    if settings.kinds:
        return settings
    noted = await SharedSettings(store, namespace=settings.namespace).noted("kinds")
    return settings if noted is None else settings.model_copy(update={"kinds": noted})


def event_log(store: Store, settings: Settings, page: int) -> EventLog:
    """The log for a command in bulk; `page`: as the log's."""
    return EventLog(
        store,
        namespace=settings.namespace,
        page=page,
        dedup_window=settings.dedup_window,
        future_tolerance_ms=round(settings.future_tolerance_s * 1000),
        idle_ttl_s=settings.idle_ttl_s,
        history_limit=settings.history_limit,
    )

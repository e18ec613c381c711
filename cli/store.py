"""The store that a command works on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from cli.console import CommandError
from service.lifecycle import STARTUP_FAILURE
from service.settings import Settings
from service.store.client import Store
from service.store.embedded import EmbeddedStore, own_directory
from service.store.errors import EmbeddedStoreError
from service.store.shared_settings import Difference, SettingsDiffer, SharedSettings

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
        CommandError: they differ from the other processes', and were not to be changed.
        StoreError: they can't be read, or not be changed.
    """
    noted = SharedSettings(store, namespace=settings.namespace)
    try:
        return await noted.agree(shared, change=settings.change_shared_settings)
    except SettingsDiffer as error:
        raise CommandError(str(error), STARTUP_FAILURE) from None

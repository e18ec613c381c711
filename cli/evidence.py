"""`tim4rec live`: the evidence of what has happened since training, in the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, out, say
from cli.fit import fit
from cli.progress import progress
from cli.settings import chosen_settings
from cli.store import (
    DataDir,
    Namespace,
    Redis,
    agreed,
    event_log,
    opened,
    require_data_dir,
    shared_settings,
    with_noted_kinds,
)
from model.kinds import KindRules
from model.live.evidence import EvidenceRules
from service.live.checkpoint import Checkpoints
from service.live.feed import Feed
from service.live.rebuild import Rebuild, RebuildError
from service.settings import Settings
from service.store.client import Store
from service.store.errors import StoreError
from service.store.shared_settings import tell_changes

NEWEST = 20_000_000
READ_PAGE = 1000

live = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")
live.command()(fit)


@live.callback()
def _live() -> None:
    """Evidence of what all users did since the training. Services count it as it comes; `rebuild`
    makes it anew, and `fit` fits anew how it joins a model's scores.
    """


@live.command()
def rebuild(
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    newest: Annotated[
        int, typer.Option(min=1, help="Most events that count, the newest; each takes 45 bytes.")
    ] = NEWEST,
) -> None:
    """Make the live evidence anew from the log: the interactions in the records of all users.

    For after import-log --no-live, a loss of the store's data, or other TIM4REC_LIVE_NEIGHBOURS or
    TIM4REC_LIVE_USERS; and to take out of the counts what erased users had added. Services may be
    running: within seconds they go on with what was made, and count nothing twice.
    """
    settings = chosen_settings(
        artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    try:
        asyncio.run(_rebuild(settings, newest))
    except StoreError as error:
        raise CommandError(f"{error}; nothing was changed, run the same command again") from None


async def _rebuild(settings: Settings, newest: int) -> None:
    async with opened(settings) as store:
        settings = await with_noted_kinds(store, settings)
        tell_changes(await agreed(store, settings, shared_settings(settings)))
        await rebuild_evidence(store, settings, newest)


async def rebuild_evidence(store: Store, settings: Settings, newest: int = NEWEST) -> None:
    """Makes the evidence of these settings, and says of what.

    Raises:
        CommandError: too much happens meanwhile.
        StoreError: the store gave up.
    """
    log = event_log(store, settings, READ_PAGE)
    made = Rebuild(
        log,
        Feed(store, namespace=settings.namespace, most=settings.live_feed_events),
        Checkpoints(store, namespace=settings.namespace),
        EvidenceRules(settings.live_neighbours, settings.live_users),
        heaviest=settings.max_weight,
        kinds=KindRules.parse(settings.kinds),
        most=newest,
    )
    users = sum([len(page) async for page in log.users()])
    with progress("reading", users, "users") as advance:
        try:
            result = await made.run(advance)
        except RebuildError as error:
            raise CommandError(str(error)) from None
    text = f"live evidence made of {result.events:,} events with {result.items:,} items"
    if result.left_out:
        text += f"; {result.left_out:,} older ones are left out"
    if result.damaged:
        text += f"; {result.damaged:,} records can't be read"
    say(text, out)

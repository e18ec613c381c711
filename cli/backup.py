"""`tim4rec backup` and `tim4rec restore`: all that a namespace keeps, out of a store and back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, out, say
from cli.device import choose_device
from cli.evidence import rebuild_evidence
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
)
from model.artefact import load_artefact
from model.artefact_store import local_artefact
from model.kinds import KindRules
from service.bulk.backup import back_up
from service.bulk.backup import restore as restore_keys
from service.bulk.backup_check import Compared, compared, contents
from service.bulk.backup_folder import BackupFolder, new_backup
from service.bulk.stored_keys import StoredKeys
from service.engine.engine import Engine
from service.models.registry import ModelRegistry
from service.settings import Settings
from service.store.backup_marks import BackupMarks
from service.store.client import Store
from service.store.errors import StoreError
from service.store.event_log import EventLog
from service.store.record_keys import RecordKeys
from service.store.shared_settings import tell_changes

LISTED = 20


def backup(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new folder; with --verify, that of a backup.")
    ],
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: check the backup that is in OUT.")
    ] = False,
    artefact: Annotated[
        str | None,
        typer.Option(
            metavar="ARTEFACT",
            help="Also compute states of this model from the backup, and compare them with the "
            "store's snapshots.",
        ),
    ] = None,
) -> None:
    """Write all that a namespace keeps into a folder: users' records, items, counts, trials, the
    model that is set, shared settings.

    Services may be running. Each record and every other key is as it was at one moment after the
    backup began; what was accepted before is in it. OUT appears when it is whole. Then it is
    checked: every file by its hash, and the records of 100 users against the store's.

    Snapshots of states and live evidence are not in it: both follow from the records.
    """
    settings = chosen_settings(
        artefact=artefact or Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    try:
        asyncio.run(_backup(folder, settings, verify, artefact is not None))
    except StoreError as error:
        raise CommandError(str(error)) from None


def restore(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a backup.")],
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="First delete all that the namespace has.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live/--no-live", help="Then make the live evidence anew, as `live rebuild` does."
        ),
    ] = True,
) -> None:
    """Make a namespace what `backup` has written. Services have to be stopped meanwhile.

    The hash of each file is checked before it is used, and every key is read back and compared.
    Cut off, a restore leaves a mark: no service starts until it was run again, with --replace.
    """
    found = BackupFolder(folder)
    settings = chosen_settings(
        artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    try:
        asyncio.run(_restore(found, settings, replace, live and settings.live))
    except StoreError as error:
        raise CommandError(f"{error}; run the same command again with --replace") from None


async def _backup(folder: Path, settings: Settings, verify: bool, states: bool) -> None:
    started = time.perf_counter()
    engine_of = _engine if states else lambda settings, log: None
    async with opened(settings) as store:
        marks = BackupMarks(store, RecordKeys(settings.namespace))
        log = event_log(store, settings, 1)
        engine = engine_of(settings, log)
        if verify:
            found = BackupFolder(folder)
        else:
            await marks.require_whole()
            found = await _written(folder, store, settings)
        with progress("checking", sum(found.manifest.keys.values()), "keys") as advance:
            read = await asyncio.to_thread(contents, log, found, advance)
        result = await compared(log, read.sample, engine)
        if not verify:
            await marks.note_backup(found.manifest.began_ms)
    _say(found, result, engine, settings.exactness_tolerance, time.perf_counter() - started)
    if read.damaged:
        users = [f"  user {user!r}" for user in read.damaged[:LISTED]]
        more = f"\n  and {len(read.damaged) - LISTED:,} more" if read.damaged[LISTED:] else ""
        said = "\n".join(users) + more
        say(f"{folder}: {len(read.damaged):,} records can't be read, in the store either:\n{said}")


async def _written(folder: Path, store: Store, settings: Settings) -> BackupFolder:
    keys = StoredKeys(store, RecordKeys(settings.namespace))
    began_ms = await keys.now_ms()
    with new_backup(folder) as new:
        names = await keys.names()
        with progress("backing up", len(names), "keys") as advance:
            await back_up(keys, names, new, advance)
        new.finish(settings.namespace, began_ms)
    return BackupFolder(folder)


def _engine(settings: Settings, log: EventLog) -> Engine:
    folder = local_artefact(settings.artefact, settings.fetched_models)
    return Engine(
        load_artefact(folder, choose_device(settings.device)),
        log,
        pool_capacity=1,
        snapshot_every=settings.snapshot_every,
        snapshot_precision=settings.snapshot_precision,
        kinds=KindRules.parse(settings.kinds),
    )


def _say(
    found: BackupFolder, result: Compared, engine: Engine | None, tolerance: float, seconds: float
) -> None:
    manifest = found.manifest
    say(
        f"{found.path}: {manifest.events:,} interactions of {manifest.users:,} users and "
        f"{sum(manifest.keys.values()) - manifest.users:,} other keys, files as written; of a "
        f"sample {result.same:,} users are as in the store, {result.others:,} have changed since; "
        f"{seconds:.1f} s",
        out,
    )
    if engine is None:
        return
    say(f"{result.states:,} states computed from it; largest difference {result.largest:.1e}", out)
    if not result.largest <= tolerance:
        raise CommandError(
            f"{found.path}: states that follow from it differ from the store's snapshots by "
            f"{result.largest:.1e} in a score, more than {tolerance:g} (exactness_tolerance)"
        )


async def _restore(found: BackupFolder, settings: Settings, replace: bool, live: bool) -> None:
    async with opened(settings) as store:
        keys = StoredKeys(store, RecordKeys(settings.namespace))
        await _require_unused(store, keys, settings.namespace, replace)
        marks = BackupMarks(store, RecordKeys(settings.namespace))
        manifest = found.manifest
        with progress("restoring", 2 * sum(manifest.keys.values()), "keys") as advance:
            await restore_keys(keys, found, marks, advance)
        say(
            f"{found.path}: {manifest.events:,} interactions of {manifest.users:,} users restored, "
            "all keys read back and found the same",
            out,
        )
        if live:
            try:
                tell_changes(await agreed(store, settings, shared_settings(settings)))
                await rebuild_evidence(store, settings)
            except CommandError as error:
                raise CommandError(
                    f"{error}; all is restored but the live evidence: `tim4rec live rebuild`",
                    error.status,
                ) from None


async def _require_unused(store: Store, keys: StoredKeys, namespace: str, replace: bool) -> None:
    where = f"store {store.url}, namespace {namespace}"
    running = await ModelRegistry(store, namespace=namespace).serving()
    if running:
        raise CommandError(
            f"{where}: {len(running)} processes serve from it ({', '.join(running)}); stop them "
            "first (one that was killed counts for 30 s)"
        )
    name = None if replace else await keys.any_of_users()
    if name is not None:
        raise CommandError(
            f"{where}: is not empty ({name.decode(errors='replace')!r} is there); give another "
            "namespace, or --replace to delete all that it has"
        )

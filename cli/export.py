"""`tim4rec export-log`: the records of a store as a Parquet data set."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, out, say
from cli.progress import progress
from cli.settings import chosen_settings
from cli.shards import ShardOption, chosen_shard
from cli.store import DataDir, Namespace, Redis, event_log, opened, require_data_dir
from service.bulk.export_folder import ExportFolder
from service.bulk.exporter import Exporter, ExportResult
from service.settings import Settings
from service.store.errors import StoreError
from service.store.shards import Shard

LISTED = 20
READ_PAGE = 1000


def export_log(
    folder: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Where to write: a new folder, or one to go on with."),
    ],
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    since: Annotated[
        Path | None,
        typer.Option(
            metavar="PREVIOUS_OUT",
            help="Read from the store only what has changed since this export, and take the rest "
            "from there.",
            show_default="read all",
        ),
    ] = None,
    shard: ShardOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")
    ] = None,
) -> None:
    """Write all interactions of the store into a folder, which train, evaluate, import-log and
    replay read as a log.

    OUT is a whole data set, also with --since: `part-*.parquet` and `manifest.json`, which comes
    last. Nothing is written to the store, and services may be running: what they accept before
    the export begins is in it.

    Running it again, after a crash for instance, goes on with the parts that are missing. A folder
    that is complete stays as it is. Users whose record can't be read are left out and named.
    """
    settings = chosen_settings(
        artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    started = time.perf_counter()
    try:
        result = asyncio.run(_export(folder, settings, since, chosen_shard(shard)))
    except StoreError as error:
        raise CommandError(
            f"{error}; running the same command again goes on where this one stopped"
        ) from None
    seconds = time.perf_counter() - started
    say(
        f"{folder}: {result.events:,} interactions of {result.users:,} users, {result.read:,} of "
        f"them read from the store; {result.read / seconds:,.0f} events/s",
        out,
    )
    if not result.complete:
        say(f"{folder}: not complete until the jobs of the other shards are done")
    if result.damaged:
        say(_described(folder, result.damaged))
    if json_file is not None:
        figures = {
            "users": result.users,
            "events": result.events,
            "read_events": result.read,
            "newest_ms": result.newest_ms,
            "began_ms": result.layout.began_ms,
            "parts": len(result.parts),
            "damaged": len(result.damaged),
            "complete": result.complete,
            "seconds": seconds,
        }
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


async def _export(
    folder: Path, settings: Settings, since: Path | None, shard: Shard
) -> ExportResult:
    before = None if since is None else ExportFolder(since)
    if before is not None:
        before.complete  # noqa: B018 - before a store is started for it
    async with opened(settings) as store:
        exporter = Exporter(
            event_log(store, settings, READ_PAGE), ExportFolder(folder), shard=shard, since=before
        )
        with progress("exporting", await exporter.begin(), "users") as advance:
            return await exporter.run(advance)


def _described(folder: Path, damaged: list[str]) -> str:
    lines = [f"{folder}: {len(damaged):,} users are left out, their records can't be read:"]
    lines += [f"  user {user!r}" for user in damaged[:LISTED]]
    if len(damaged) > LISTED:
        lines.append(f"  and {len(damaged) - LISTED:,} more")
    return "\n".join(lines)

"""`tim4rec import-log` and `tim4rec warm`: records and snapshots in bulk, past the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from cli.artefacts import ArtefactPlace, fetched
from cli.console import CommandError, out, say
from cli.device import choose_device
from cli.evidence import rebuild_evidence
from cli.progress import progress
from cli.rows import describe_rows
from cli.settings import chosen_settings
from cli.shards import ShardOption, chosen_shard
from cli.spool import SpooledLog, spooled_log
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
from cli.table_options import AnyTime, Columns, Encoding, TimeFormat
from model.artefact import load_artefact
from model.artefact_store import local_artefact
from model.kernels import KernelsUnavailable, choose
from model.kinds import KindRules
from model.trained_kinds import trained_kinds
from service.bulk.importer import Existing, Importer, ImportResult, UserHistory
from service.bulk.warm import Warmer
from service.feedback.popularity import Popularity
from service.settings import Settings
from service.store.errors import StoreError
from service.store.shards import Shard
from service.store.shared_settings import tell_changes
from training.table_format import TableFormat

LISTED = 20
READ_PAGE = 1000


def import_log(
    log: Annotated[
        Path, typer.Argument(help="The interaction log: CSV, CSV.gz, Parquet, or a folder of them.")
    ],
    artefact: Annotated[
        str | None,
        typer.Option(
            metavar="ARTEFACT",
            help="The model that will be served: its rules for kinds say what counts as popular.",
            show_default="TIM4REC_KINDS, or the rules of the store's services",
        ),
    ] = None,
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    onto_existing: Annotated[
        bool,
        typer.Option(
            "--onto-existing",
            help="Append also to users who have other interactions. Rows older than a user's "
            "newest get the time of that one; rows that are stored already are there twice then.",
        ),
    ] = False,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap",
            help="As --onto-existing, but only rows that are not stored yet: those with another "
            "user, item, time or kind than what is.",
        ),
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
    columns: Columns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live/--no-live",
            help="Then make the live evidence anew, as `live rebuild` does; not with --shard.",
        ),
    ] = True,
    shard: ShardOption = None,
    rows_at_once: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most rows of the log held in memory at once, but for a user who has more; a "
            "longer log is divided in --temp-dir.",
        ),
    ] = 1_000_000,
    temp_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For the rows while they are sorted: about as much room as the log takes as "
            "Parquet, twice.",
            show_default="the system's",
        ),
    ] = None,
) -> None:
    """Write an interaction log straight into the store's records, without a service.

    The log may be larger than memory. Nothing is imported before all of it was read, sorted and
    found sound.

    Running it again, after a crash for instance, goes on exactly where each user's import
    stopped and adds nothing twice, however long the histories are; rows appended to the log
    since then are added. Users who have interactions that are not from this log are left as they
    are and named, and the exit code is 1, unless --overlap or --onto-existing is given.

    With --overlap a log may overlap what was imported before, as a nightly export does: rows are
    compared with what is stored. Of three equal rows, where one is stored, two are added.

    A row without a time gets the last known time of its user (before the first known one: that
    one; without any: 1970), not the store's clock. Nothing is imported while a row lies in the
    future of the store's clock, by more than TIM4REC_FUTURE_TOLERANCE_S (300).

    Columns `given_ms` and `event_id`, which export-log writes, go into the records too: the time
    that was given for an interaction, where another one took effect, and the id it was sent with.

    Do not send the same log with `replay` as well: it would be there twice. Other settings come
    from the environment as in `serve` (TIM4REC_DEDUP_WINDOW, TIM4REC_IDLE_TTL_S, TIM4REC_FSYNC).
    Where those that all processes of a store share differ from the service's, the exit code is 3.
    """
    # Settings are those of a service, which has a model.
    settings = chosen_settings(
        artefact=artefact or Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    if artefact is not None:
        settings = settings.with_kinds(trained_kinds(fetched(artefact)))
    if overlap and onto_existing:
        raise CommandError("--overlap and --onto-existing: give one of them")
    existing: Existing = "overlap" if overlap else "append" if onto_existing else "refuse"
    require_data_dir(settings)
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    started = time.perf_counter()
    try:
        with spooled_log(
            log,
            shard=chosen_shard(shard),
            rows_at_once=rows_at_once,
            temp_dir=temp_dir,
            skip_bad_rows=skip_bad_rows,
            heaviest=settings.max_weight,
            form=form,
        ) as rows:
            result = asyncio.run(
                _import(rows, settings, existing, live and settings.live and shard is None)
            )
    except StoreError as error:
        raise CommandError(
            f"{error}; running the same command again goes on where this one stopped"
        ) from None
    seconds = time.perf_counter() - started
    text = f"{log}: {result.written:,} interactions written"
    if result.late:
        text += f" ({result.late:,} with the time of a newer one)"
    if result.present:
        text += f", {result.present:,} were there"
    say(f"{text}; {result.written / seconds:,.0f} events/s", out)
    if result.refused:
        raise CommandError(
            f"{result.refused_count:,} users are not imported, or not to the end (if they have "
            "other interactions: --overlap adds the rows that are not stored yet):\n"
            f"{_listed(result.refused, result.refused_count)}"
        )


async def _import(
    rows: SpooledLog, settings: Settings, existing: Existing, live: bool
) -> ImportResult:
    async with opened(settings) as store:
        settings = await with_noted_kinds(store, settings)
        if rows.kinds and not settings.kinds:
            say(f"{rows.path}: all kinds count as popular: --artefact or TIM4REC_KINDS says which")
        tell_changes(await agreed(store, settings, shared_settings(settings)))
        log = event_log(store, settings, 1)
        importer = Importer(
            log,
            event_log(store, settings, READ_PAGE),
            existing=existing,
            popularity=Popularity(
                store,
                namespace=log.keys.namespace,
                half_life_s=settings.popular_half_life_s,
                most_items=settings.popular_items,
                heaviest=settings.max_weight,
            ),
            kinds=KindRules.parse(settings.kinds),
        )
        latest = await importer.now_ms() + round(settings.future_tolerance_s * 1000)
        with progress("sorting", rows.rows, "rows") as advance:
            future, count = rows.sort(latest, advance)
        if count:
            raise CommandError(
                f"{rows.path}: {count:,} rows lie in the future of the store's clock; nothing was "
                f"imported:\n{describe_rows(future, count)}\n"
                "Mend their timestamps, or the store's clock."
            )
        with progress("importing", rows.rows, "events") as advance:
            result = await importer.run(_histories(rows.frames()), advance)
        if live and result.written:
            await rebuild_evidence(store, settings)
        return result


def _histories(frames: Iterable[pl.DataFrame]) -> Iterator[UserHistory]:
    for frame in frames:
        place = 0
        for user_id, length in frame.group_by("user_id", maintain_order=True).len().iter_rows():
            own = frame.slice(place, length)
            place += length
            kinds, weights = own["kind"], own["weight"]
            plain = kinds.null_count() == weights.null_count() == length
            yield UserHistory(
                user_id,
                own["item_id"].to_list(),
                own["time_ms"].to_list(),
                None if plain else list(zip(kinds.to_list(), weights.to_list(), strict=True)),
                own["given_ms"].to_list() if "given_ms" in own.columns else None,
                own["event_id"].to_list() if "event_id" in own.columns else None,
            )


def warm(
    artefact: ArtefactPlace,
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    snapshot_precision: Annotated[
        str | None,
        typer.Option(
            help="float32 or float16, as in the service.",
            show_default="TIM4REC_SNAPSHOT_PRECISION or float32",
        ),
    ] = None,
    snapshot_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="As in the service. With float16, snapshots exist at multiples of it only.",
            show_default="TIM4REC_SNAPSHOT_EVERY or 64",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...", show_default="auto")
    ] = None,
    shard: ShardOption = None,
) -> None:
    """Compute a model's snapshot of every record, so that a service starts without rebuilding.

    Do it after import-log, and before a new model is served; a service may be running. Users
    whose snapshot is at their newest interaction are skipped, others are moved on from the
    snapshot they have, so running it again costs little. A service uses the snapshots if it
    serves the same artefact, with float16 also at the same --snapshot-every. They live as long
    as its own (TIM4REC_SNAPSHOT_TTL_S).
    """
    settings = chosen_settings(
        artefact=artefact,
        redis_url=redis,
        data_dir=data_dir,
        namespace=namespace,
        snapshot_precision=snapshot_precision,
        snapshot_every=snapshot_every,
        device=device,
    )
    require_data_dir(settings)
    try:
        asyncio.run(_warm(settings, chosen_shard(shard)))
    except StoreError as error:
        raise CommandError(f"{error}; running the same command again goes on there") from None


async def _warm(settings: Settings, shard: Shard) -> None:
    folder = local_artefact(settings.artefact, settings.fetched_models)
    loaded = load_artefact(folder, choose_device(settings.device))
    try:
        loaded.model.use(choose(settings.kernels, loaded.model.device))
    except KernelsUnavailable as error:
        raise CommandError(f"kernels {settings.kernels}: {error}") from None
    settings = settings.with_kinds(loaded.kinds)
    started = time.perf_counter()
    async with opened(settings) as store:
        settings = await with_noted_kinds(store, settings)
        tell_changes(await agreed(store, settings, shared_settings(settings)))
        warmer = Warmer(
            loaded,
            event_log(store, settings, max(256, 2 * settings.snapshot_every)),
            snapshot_every=settings.snapshot_every,
            snapshot_ttl_s=settings.snapshot_ttl_s,
            snapshot_precision=settings.snapshot_precision,
            shard=shard,
            kinds=KindRules.parse(settings.kinds),
        )
        with progress("warming", await warmer.count(), "users") as advance:
            result = await warmer.run(advance)
    seconds = time.perf_counter() - started
    parts = [f"{result.written:,} snapshots written", f"{result.current:,} were up to date"]
    if result.short:
        parts.append(
            f"{result.short:,} users have fewer than {settings.snapshot_every} interactions and "
            "none"
        )
    if result.unfit:
        parts.append(f"{result.unfit:,} states do not fit {settings.snapshot_precision}")
    if result.truncated:
        parts.append(f"{result.truncated:,} have lost the beginning of their history")
    if result.gone:
        parts.append(f"{result.gone:,} users were erased meanwhile")
    say(
        f"model {warmer.engine.identity}: {', '.join(parts)}; {result.users / seconds:,.0f} "
        f"users/s, {result.events / seconds:,.0f} events/s",
        out,
    )
    if result.damaged:
        raise CommandError(
            f"{len(result.damaged):,} records can't be read:\n"
            f"{_listed(result.damaged, len(result.damaged))}"
        )


def _listed(faults: list[tuple[str, str]], count: int) -> str:
    lines = [f"  user {user!r}: {fault}" for user, fault in faults[:LISTED]]
    if count > len(lines):
        lines.append(f"  and {count - len(lines):,} more")
    return "\n".join(lines)

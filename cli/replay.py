"""`tim4rec replay`: a log sent to a running service, as its callers would send it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from cli.console import CommandError, out, say
from cli.progress import progress
from cli.rows import read_rows
from cli.service_client import service_client
from cli.service_url import ServiceUrl
from cli.table_options import AnyTime, Columns, Encoding, TimeFormat
from model.items import LONGEST_ID
from model.times import DATE_TIMES, MILLISECONDS_FROM, iso, parse_time
from tim4rec_client import AsyncClient, Interaction, Refused, ServiceError, Unavailable
from training.interactions import KIND_COLUMNS
from training.table_format import TableFormat

LISTED = 20
LOOK_UPS = 2
"""Users looked up at once for each batch."""
REQUESTS_PER_S = 10
"""At a given rate, batches are as small as makes so many requests a second."""

ACCEPTED = ("applied", "late", "unknown_item", "duplicate")


def replay(
    log: Annotated[
        Path, typer.Argument(help="The interaction log: CSV, CSV.gz, Parquet, or a folder of such.")
    ],
    url: Annotated[str, typer.Option(help="Where the service listens.")] = "http://127.0.0.1:8000",
    rate: Annotated[
        float, typer.Option(min=0, metavar="EVENTS_PER_S", help="Send no faster than this; 0: do.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Most interactions in one request.")] = 500,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests at once; a user's are never at once.")
    ] = 8,
    api_key: Annotated[
        str | None, typer.Option(envvar="TIM4REC_API_KEY", help="Sent as X-API-Key.")
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="First part of the event ids.", show_default="name of the file"
        ),
    ] = None,
    retry_for: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to try a request again.")
    ] = 60,
    first_time: Annotated[
        bool,
        typer.Option(
            "--first-time",
            help="Nothing of this tag was ever sent: do not ask the service for each user what is "
            "there. Quicker with many users.",
        ),
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
    columns: Columns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
) -> None:
    """Send a log to a running service through POST /interactions/batch.

    Interactions go out in the order of their times, each user's in order. The event id of a row
    is TAG:N, N being the row's number among its user's in time order. So running it again, after
    a stop or with rows appended to the log, applies nothing twice; what is there already counts
    as duplicate, however long ago it was sent. Another log of the same users needs another --tag:
    a row whose event id is there with another item, time, kind or weight is a conflict, and is not
    applied. Columns `kind` and `weight` go through where there are some.

    A row without a time gets the last known time of its user (before the first known one: that
    one; without any: 1970). What fails is sent again with the same event ids. The exit code is 1
    if a row is not in the service at the end; conflicts, rejected, future and failed ones are
    named.
    """
    form = TableFormat.parse(columns, encoding, time_format, any_time)
    tag = log.name if tag is None else tag
    rows = read_rows(log, skip_bad_rows=skip_bad_rows, form=form)
    longest = f"{tag}:{len(rows)}"
    if len(longest.encode()) > LONGEST_ID:
        raise CommandError(f"--tag: {longest!r} has more than {LONGEST_ID} bytes; give a shorter")
    if rate:
        batch = max(1, min(batch, round(rate / REQUESTS_PER_S)))
    sending = _Sending(url, api_key, tag, batch, concurrency, rate, retry_for, first_time)
    started = time.perf_counter()
    with progress("sending", len(rows), "events") as advance:
        sent = asyncio.run(_send(rows, sending, advance))
    seconds = time.perf_counter() - started
    counts = ", ".join(f"{count:,} {status}" for status, count in sent.counts.most_common())
    say(f"{log}: {counts}; {sent.counts.total() / seconds:,.0f} events/s", out)
    missing = sent.counts.total() - sum(sent.counts[status] for status in ACCEPTED)
    if missing:
        lines = [f"  {fault}" for fault in sent.faults[:LISTED]]
        if len(sent.faults) > LISTED:
            lines.append(f"  and {len(sent.faults) - LISTED:,} more")
        raise CommandError(
            f"{missing:,} interactions are not in the service, or not known to be:\n"
            + "\n".join(lines)
            + "\nRunning the same command again sends what is missing."
        )


@dataclass(frozen=True)
class _Sending:
    """How a log is sent, and where."""

    url: str
    api_key: str | None
    tag: str
    batch: int
    concurrency: int
    rate: float
    retry_for: float
    first_time: bool

    def client(self, retry_for_s: float) -> AsyncClient:
        return service_client(self.url, self.api_key, retry_for_s=retry_for_s)


_Content = tuple[str, str | None, str | None, float | None]
"""Item, given time, kind, weight."""


@dataclass(frozen=True, slots=True)
class _Event:
    """A row of the log as an interaction; `row`: its number among its user's."""

    row: int
    interaction: Interaction

    @property
    def user_id(self) -> str:
        return self.interaction.user_id

    @property
    def content(self) -> _Content:
        sent = self.interaction
        return sent.item_id, iso(parse_time(sent.timestamp)), sent.kind, sent.weight

    def __str__(self) -> str:
        sent = self.interaction
        return f"user {sent.user_id!r}, row {self.row} in the user's order: item {sent.item_id!r}"


def _events(rows: pl.DataFrame, tag: str) -> list[_Event]:
    columns = rows.select("user_id", "item_id", "time_ms", "row", *KIND_COLUMNS)
    return [
        _Event(row, Interaction(user, item, _written(time_ms), f"{tag}:{row}", kind, weight))
        for user, item, time_ms, row, kind, weight in columns.iter_rows()
    ]


def _written(time_ms: int) -> int | str:
    return time_ms if MILLISECONDS_FROM <= time_ms < DATE_TIMES[0] else iso(time_ms)


async def _send(rows: pl.DataFrame, how: _Sending, advance: Callable[[int], None]) -> _Replay:
    async with how.client(retry_for_s=0) as once:
        await _check(once, how)
    async with how.client(how.retry_for) as client:
        sender = _Replay(client, how, advance)
        lane = (pl.col("user_id").hash() % how.concurrency).alias("lane")
        lanes = rows.sort("time_ms", maintain_order=True).with_columns(lane).partition_by("lane")
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in lanes:
                    tasks.create_task(sender.lane(part))
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return sender


async def _check(once: AsyncClient, how: _Sending) -> None:
    """Raises CommandError unless a service of ours answers there, and lets us in."""
    base = ServiceUrl.parse(how.url).base
    try:
        await once.ready()
    except Unavailable as error:
        if error.status is None:
            raise CommandError(
                f"no service answers at {base}: {error}; start one with "
                "`tim4rec serve`, or give its --url"
            ) from None
    except Refused as error:
        raise CommandError(
            f"{base} is no service of this kind: /readyz answers {error}; give its --url"
        ) from None
    try:
        await once.history("anyone")
    except Unavailable:  # it may be there in time
        pass
    except Refused as error:
        if error.status != 404:
            raise CommandError(str(error)) from None


class _Replay:
    """`counts`: rows by what became of them: a status of the service's, `failed` (given up) or
    `not sent` (after one that failed). `faults`: a line for each that is not accepted."""

    def __init__(self, client: AsyncClient, how: _Sending, advance: Callable[[int], None]) -> None:
        self.client, self.how, self.advance = client, how, advance
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._looked_up: set[str] = set()
        self._there: dict[str, dict[str, _Content]] = {}
        self._blocked: set[str] = set()  # users: a row of theirs failed, later ones must wait
        self._stopped = False  # the service was given up
        self._next_slot = time.monotonic()

    async def lane(self, rows: pl.DataFrame) -> None:
        """Sends these rows in order, a batch at a time."""
        for piece in rows.iter_slices(self.how.batch):
            events = _events(piece, self.how.tag)
            if not self.how.first_time:
                await self._look_up_all({event.user_id for event in events} - self._looked_up)
            events = [event for event in events if self._must_be_sent(event)]
            if events:
                await self._pace(len(events))
                await self._deliver(events)

    async def _look_up_all(self, users: set[str]) -> None:
        waiting = iter(users)

        async def some() -> None:
            for user in waiting:
                if not self._stopped:
                    await self._look_up(user)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(LOOK_UPS):
                tasks.create_task(some())

    async def _look_up(self, user_id: str) -> None:
        """Finds what of the user is in the service: `event_id`s are remembered for the newest
        interactions only, the history has them all."""
        try:
            history = await self.client.history(user_id)
        except Unavailable as error:
            self._give_up(error)
            return
        except Refused as error:
            if error.status != 404:  # nothing is known of the user
                raise CommandError(str(error)) from None
            history = []
        self._looked_up.add(user_id)
        self._there[user_id] = {
            event_id: (event["item_id"], event["given_timestamp"], event["kind"], event["weight"])
            for event in history
            if (event_id := event["event_id"]) is not None
            and event_id.startswith(f"{self.how.tag}:")
        }

    def _must_be_sent(self, event: _Event) -> bool:
        if self._stopped or event.user_id in self._blocked:
            self._book(event, "not sent")
            return False
        there = self._there.get(event.user_id, {}).get(event.interaction.event_id)
        if there is None:
            return True
        if there == event.content:
            self._book(event, "duplicate")
        else:
            item, time, *what = there
            given = "".join(
                f", {n} {v}" for n, v in zip(KIND_COLUMNS, what, strict=True) if v is not None
            )
            self._book(event, "conflict", f"event_id: used for item {item!r} at {time}{given}")
        return False

    async def _deliver(self, events: list[_Event]) -> None:
        try:
            results = await self.client.post_all(
                [event.interaction for event in events], batch=len(events)
            )
        except Refused as error:
            raise CommandError(str(error)) from None
        for event, result in zip(events, results, strict=True):
            self._book(event, result["status"], result["detail"])
            if result["status"] == "failed":
                self._blocked.add(event.user_id)
        if all(result["status"] == "failed" for result in results):
            await self._stop_if_gone(str(results[0]["detail"]))

    async def _stop_if_gone(self, reason: str) -> None:
        """Users whose rows fail hold nobody up, a service that is away does."""
        async with self.how.client(retry_for_s=0) as once:
            try:
                await once.ready()
            except ServiceError:
                self._give_up(reason)

    def _give_up(self, reason: object) -> None:
        if not self._stopped:
            self.faults.append(f"given up: {reason}")
        self._stopped = True

    async def _pace(self, events: int) -> None:
        if self.how.rate:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            self._next_slot = slot + events / self.how.rate
            await asyncio.sleep(slot - now)

    def _book(self, event: _Event, status: str, detail: str | None = None) -> None:
        self.counts[status] += 1
        self.advance(1)
        if status not in (*ACCEPTED, "not sent"):
            self.faults.append(f"{event}: {status}" + (f" ({detail})" if detail else ""))


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error

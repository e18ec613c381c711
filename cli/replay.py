"""`tim4rec replay`: a log sent to a running service, as its callers would send it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import polars as pl
import typer

from cli.api_key import key_header
from cli.console import CommandError, out, say
from cli.progress import progress
from cli.rows import read_rows
from cli.service_url import ServiceUrl
from model.items import LONGEST_ID
from model.times import MILLISECONDS_FROM, iso
from training.interactions import KIND_COLUMNS

LISTED = 20
REQUEST_TIMEOUT_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
HISTORY_PAGE = 10_000
LOOK_UPS = 2
"""Users looked up at once for each batch."""
REQUESTS_PER_S = 10
"""At a given rate, batches are as small as makes so many requests a second."""

ACCEPTED = ("applied", "late", "unknown_item", "duplicate")


def replay(
    log: Annotated[Path, typer.Argument(help="The interaction log: CSV, CSV.gz or Parquet.")],
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
    tag = log.name if tag is None else tag
    rows = read_rows(log, skip_bad_rows=skip_bad_rows)
    longest = f"{tag}:{len(rows)}"
    if len(longest.encode()) > LONGEST_ID:
        raise CommandError(f"--tag: {longest!r} has more than {LONGEST_ID} bytes; give a shorter")
    if rate:
        batch = max(1, min(batch, round(rate / REQUESTS_PER_S)))
    plan = _Plan(tag, batch, concurrency, rate, retry_for, first_time)
    started = time.perf_counter()
    with progress("sending", len(rows), "events") as advance:
        sent = asyncio.run(_send(rows, url, api_key, plan, advance))
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
class _Plan:
    tag: str
    batch: int
    concurrency: int
    rate: float
    retry_for: float
    first_time: bool


_Content = tuple[str, str | None, str | None, float | None]
"""Item, given time, kind, weight."""


@dataclass(frozen=True, slots=True)
class _Row:
    user_id: str
    item_id: str
    time_ms: int
    row: int
    kind: str | None
    weight: float | None

    def body(self, tag: str) -> dict[str, Any]:
        # A smaller number would be read as seconds.
        exact = abs(self.time_ms) >= MILLISECONDS_FROM
        body = {
            "user_id": self.user_id,
            "item_id": self.item_id,
            "timestamp": self.time_ms if exact else iso(self.time_ms),
            "event_id": f"{tag}:{self.row}",
            "kind": self.kind,
            "weight": self.weight,
        }
        return {name: value for name, value in body.items() if value is not None}

    @property
    def content(self) -> _Content:
        return self.item_id, iso(self.time_ms), self.kind, self.weight

    def __str__(self) -> str:
        return f"user {self.user_id!r}, row {self.row} in the user's order: item {self.item_id!r}"


async def _send(
    rows: pl.DataFrame,
    url: str,
    api_key: str | None,
    plan: _Plan,
    advance: Callable[[int], None],
) -> _Replay:
    asked = ServiceUrl.parse(url)
    async with httpx.AsyncClient(
        base_url=asked.base,
        auth=asked.login,
        headers=key_header(api_key),
        limits=httpx.Limits(max_connections=plan.concurrency),
        timeout=httpx.Timeout(REQUEST_TIMEOUT_S, pool=None),
    ) as client:
        sender = _Replay(client, plan, advance)
        await sender.check()
        lane = (pl.col("user_id").hash() % plan.concurrency).alias("lane")
        lanes = rows.sort("time_ms", maintain_order=True).with_columns(lane).partition_by("lane")
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in lanes:
                    tasks.create_task(sender.lane(part))
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return sender


class _Replay:
    """`counts`: rows by what became of them: a status of the service's, `failed` (given up) or
    `not sent` (after one that failed). `faults`: a line for each that is not accepted."""

    def __init__(
        self, client: httpx.AsyncClient, plan: _Plan, advance: Callable[[int], None]
    ) -> None:
        self.client, self.plan, self.advance = client, plan, advance
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._looked_up: set[str] = set()
        self._there: dict[str, dict[str, _Content]] = {}
        self._blocked: set[str] = set()  # users: a row of theirs failed, later ones must wait
        self._stopped = False  # the service was given up
        self._next_slot = time.monotonic()

    async def check(self) -> None:
        """Raises CommandError unless a service of ours answers there."""
        try:
            response = await self.client.get("/readyz")
        except httpx.TransportError as error:
            raise CommandError(
                f"no service answers at {self.client.base_url}: {_text(error)}; start one with "
                "`tim4rec serve`, or give its --url"
            ) from None
        if response.status_code not in (200, 503):
            raise CommandError(
                f"{self.client.base_url} is no service of this kind: /readyz answers "
                f"{response.status_code}; give its --url"
            )
        await self._look_up("anyone")  # whether it lets us in is known before many ask

    async def lane(self, rows: pl.DataFrame) -> None:
        """Sends these rows in order, a batch at a time."""
        for piece in rows.iter_slices(self.plan.batch):
            batch = [
                _Row(*row)
                for row in piece.select(
                    "user_id", "item_id", "time_ms", "row", *KIND_COLUMNS
                ).iter_rows()
            ]
            if not self.plan.first_time:
                await self._look_up_all({row.user_id for row in batch} - self._looked_up)
            batch = [row for row in batch if self._must_be_sent(row)]
            if batch:
                await self._pace(len(batch))
                await self._deliver(batch)

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
        # A dot for a name would be taken for a step in the path.
        path = f"/users/{quote(user_id, safe='').replace('.', '%2E')}/history"
        there: dict[str, _Content] = {}
        after: int | None = 0
        while after is not None:
            answer = await self._ask(
                "GET",
                path,
                time.monotonic() + self.plan.retry_for,
                params={"after": after, "limit": HISTORY_PAGE},
            )
            if answer is None:
                return
            if answer.status_code == 404:  # nothing is known of the user
                break
            page = answer.json()
            for event in page["events"]:
                event_id = event["event_id"]
                if event_id is not None and event_id.startswith(f"{self.plan.tag}:"):
                    there[event_id] = (
                        event["item_id"], event["given_timestamp"], event["kind"], event["weight"]
                    )  # fmt: skip
            after = page["next"]
        if there:
            self._there[user_id] = there
        self._looked_up.add(user_id)

    def _must_be_sent(self, row: _Row) -> bool:
        if self._stopped or row.user_id in self._blocked:
            self._book(row, "not sent")
            return False
        event = self._there.get(row.user_id, {}).get(f"{self.plan.tag}:{row.row}")
        if event is None:
            return True
        if event == row.content:
            self._book(row, "duplicate")
        else:
            item, time, *what = event
            told = "".join(
                f", {n} {v}" for n, v in zip(KIND_COLUMNS, what, strict=True) if v is not None
            )
            self._book(row, "conflict", f"event_id: used for item {item!r} at {time}{told}")
        return False

    async def _deliver(self, rows: list[_Row]) -> None:
        until = time.monotonic() + self.plan.retry_for
        pause = FIRST_PAUSE_S
        while True:
            bodies = [row.body(self.plan.tag) for row in rows]
            answer = await self._ask(
                "POST", "/interactions/batch", until, json={"interactions": bodies}
            )
            if answer is None:
                for row in rows:
                    self._book(row, "failed", "given up; it may be there")
                return
            failed: list[tuple[_Row, str]] = []
            for row, result in zip(rows, answer.json()["results"], strict=True):
                if result["status"] == "failed":
                    failed.append((row, str(result["detail"])))
                else:
                    self._book(row, result["status"], result["detail"])
            if not failed:
                return
            if len(failed) < len(rows):
                until = time.monotonic() + self.plan.retry_for
            elif time.monotonic() + pause > until:
                for row, detail in failed:
                    self._blocked.add(row.user_id)
                    self._book(row, "failed", detail)
                return
            # A user's later rows fail with the first that does, so the order is kept.
            rows = [row for row, _ in failed]
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _ask(
        self, method: str, path: str, until: float, **content: Any
    ) -> httpx.Response | None:
        """The service's answer (success or 404), tried for until that time; None: given up, and
        everything stops."""
        pause = FIRST_PAUSE_S
        while True:
            wait = pause * random.uniform(0.5, 1.0)
            try:
                answer = await self.client.request(method, path, **content)
            except httpx.TransportError as error:
                problem = _text(error)
            else:
                if answer.is_success or answer.status_code == 404:
                    return answer
                problem = f"{answer.status_code} {_detail(answer)}"
                if answer.status_code != 429 and answer.status_code < 500:
                    raise CommandError(f"{method} {self.client.base_url.join(path)}: {problem}")
                if (seconds := answer.headers.get("Retry-After", "")).isdecimal():
                    wait = max(wait, float(seconds))
            if self._stopped or time.monotonic() + wait > until:
                if not self._stopped:
                    self.faults.append(f"given up: {method} {path}: {problem}")
                self._stopped = True
                return None
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _pace(self, events: int) -> None:
        if self.plan.rate:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            self._next_slot = slot + events / self.plan.rate
            await asyncio.sleep(slot - now)

    def _book(self, row: _Row, status: str, detail: str | None = None) -> None:
        self.counts[status] += 1
        self.advance(1)
        if status not in (*ACCEPTED, "not sent"):
            self.faults.append(f"{row}: {status}" + (f" ({detail})" if detail else ""))


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]

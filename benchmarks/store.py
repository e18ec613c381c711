"""What each setting of the store costs: memory, traffic, file, replay at a miss, events a second.

    python -m benchmarks.store artefacts/amazon-beauty --json runs/store.json

A store of its own for each row, with the embedded store's options; the first row has the service's
defaults, each other one a single setting changed. Users have 1 to twice `--events` interactions,
every length as often, and send them one by one: pipelines of 64 users through the event log, as the
service's waves are, while the snapshots that are due are written beside them. The arithmetic is
left out: a snapshot holds random numbers in the model's layout. Then every user is read as after a
miss in the pool.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import redis
import torch
import typer
from rich.table import Table

from cli.console import err, errors_without_traceback, out
from model import ModelConfig, TiM4Rec
from model.artefact import load_artefact
from model.state import Precision, StateLayout
from service.catalogue.ask import RECENT
from service.engine import snapshots
from service.engine.pool import Row
from service.engine.snapshots import SnapshotFormat
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import NewEvent, new_uid
from service.store.snapshot_store import SnapshotStore

PIPELINE = 64
MODEL = "0123456789abcdef"
STAMP = snapshots.stamp(MODEL)
BEAUTY_ITEMS = 12_101
START_MS = 1_700_000_000_000
NEVER = 2**31


@dataclass(frozen=True)
class Setting:
    """One row's settings; `snapshot_every` NEVER: no snapshots. A `history_limit` below the default
    `dedup_window` lowers that as well."""

    snapshot_every: int = 64
    snapshot_precision: Precision = "float32"
    fsync: Literal["always", "everysec", "no"] = "always"
    history_limit: int = 0


SETTINGS = [
    Setting(),
    Setting(snapshot_every=16),
    Setting(snapshot_every=256),
    Setting(snapshot_every=NEVER),
    Setting(snapshot_precision="float16"),
    Setting(fsync="everysec"),
    Setting(fsync="no"),
    Setting(history_limit=200),
]


@dataclass(frozen=True)
class Cost:
    """What it came to. Bytes are the store's own counts: `memory` a user, of `used_memory`;
    `received` and `sent` an event, of its network traffic; `file` an event, of the growth of the
    append-only file without rewrites; `miss` sent for a user who is read anew. `replayed`: events
    to replay then, on average. `rate`: events a second."""

    setting: Setting
    events: int
    memory: float
    received: float
    sent: float
    file: float
    miss: float
    replayed: float
    rate: float


@dataclass
class _User:
    row: Row
    left: int


async def measure(
    setting: Setting, layout: StateLayout, users: int, events: int, event_ids: bool
) -> Cost:
    """One row. Raises StoreError when the store fails."""
    draw = random.Random(0)
    crowd = [_User(Row(f"user{n:08}", n), draw.randint(1, 2 * events - 1)) for n in range(users)]
    total = sum(user.left for user in crowd)
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as name:
        fsync = "everysec" if setting.fsync == "no" else setting.fsync
        with (
            EmbeddedStore(name, fsync=fsync) as url,
            redis.Redis.from_url(url) as client,
        ):
            client.config_set("appendfsync", setting.fsync)
            client.config_set("auto-aof-rewrite-percentage", 0)
            async with Store(url, timeout_s=60) as store:
                log = _log(store, setting)
                await _asked(log, [LogRequest("warm-up", None, [_event(draw, False)])])
                await _asked(log, [LogRequest("warm-up")])
            empty = _memory(client)
            async with Store(url, timeout_s=60) as store:
                log = _log(store, setting)
                before, file = _counts(client), _file_size(name)
                started = time.perf_counter()
                await _live(log, crowd, setting, layout, draw, event_ids)
                seconds = time.perf_counter() - started
                lived, grown = _counts(client), _file_size(name) - file
                replayed = await _miss(log, crowd, layout)
                missed = _counts(client)
            memory = _memory(client) - empty
    received, sent = (b - a for a, b in zip(before, lived, strict=True))
    return Cost(
        setting,
        total,
        memory / users,
        received / total,
        sent / total,
        grown / total,
        (missed[1] - lived[1]) / users,
        replayed,
        total / seconds,
    )


def _log(store: Store, setting: Setting) -> EventLog:
    return EventLog(
        store,
        dedup_window=min(1000, setting.history_limit or 1000),
        history_limit=setting.history_limit,
    )


async def _live(
    log: EventLog,
    crowd: Sequence[_User],
    setting: Setting,
    layout: StateLayout,
    draw: random.Random,
    event_ids: bool,
) -> None:
    state = layout.new(1)
    for part in state.parts.values():
        if part.dtype.is_floating_point:
            part.normal_(generator=torch.Generator().manual_seed(0))
    writing: asyncio.Future[int] | None = None
    for wave in _waves(crowd, draw):
        rows = [user.row for user in wave]
        requests = [LogRequest(row.user_id, row.mark, [_event(draw, event_ids)]) for row in rows]
        due = []
        for user, request, reply in zip(wave, requests, await _asked(log, requests), strict=True):
            row, item = user.row, request.events[0].item_id
            row.mark, row.count, user.left = reply.newest, reply.newest.version, user.left - 1
            row.seen.add([int(item)])
            row.recent = (item, *row.recent)[:RECENT]
            if row.mark.version % setting.snapshot_every == 0:
                about = snapshots.describe(STAMP, row)
                packed = layout.pack(state, [about], setting.snapshot_precision)
                due.append((row.user_id, packed[0]))
        if due:
            # One at a time: a write that its user's later events overtake by a history is not done.
            if writing:
                await writing
            marks = [snapshots.mark(data) for _, data in due]
            writing = asyncio.ensure_future(
                SnapshotStore(log).write(MODEL, due, 30 * 86_400, marks)
            )
    if writing:
        await writing


def _waves(crowd: Sequence[_User], draw: random.Random) -> Iterator[list[_User]]:
    while going := [user for user in crowd if user.left]:
        draw.shuffle(going)
        for start in range(0, len(going), PIPELINE):
            yield going[start : start + PIPELINE]


async def _miss(log: EventLog, crowd: Sequence[_User], layout: StateLayout) -> float:
    replayed = 0
    for start in range(0, len(crowd), PIPELINE):
        wave = crowd[start : start + PIPELINE]
        requests = [LogRequest(user.row.user_id, None, (), MODEL) for user in wave]
        for reply in await _asked(log, requests):
            base = SnapshotFormat(layout, MODEL).read(reply.snapshot)
            replayed += reply.newest.version - (base.mark.version if base else reply.oldest - 1)
    return replayed / len(crowd)


async def _asked(log: EventLog, requests: Sequence[LogRequest]) -> list[LogReply]:
    replies = []
    for reply in await log.exchange(requests):
        if isinstance(reply, StoreError):
            raise reply
        replies.append(reply)
    return replies


def _event(draw: random.Random, event_id: bool) -> NewEvent:
    item = f"{draw.randint(1, BEAUTY_ITEMS):08}"
    return NewEvent(
        new_uid(), item, START_MS, str(UUID(int=draw.getrandbits(128))) if event_id else None
    )


def _counts(client: redis.Redis) -> tuple[int, int]:
    """Bytes received and sent so far."""
    traffic = client.info("stats")
    return traffic["total_net_input_bytes"], traffic["total_net_output_bytes"]


def _memory(client: redis.Redis) -> int:
    """Bytes in use once nobody else is connected: what a connection buffers is no user's."""
    while client.info("clients")["connected_clients"] > 1:
        time.sleep(0.01)
    return int(client.info("memory")["used_memory"])


def _file_size(folder: str) -> int:
    return sum(file.stat().st_size for file in (Path(folder) / "appendonlydir").iterdir())


def main(
    artefact: Annotated[
        Path | None,
        typer.Argument(help="Folder of a model, for its states' layout. None: of Beauty's size."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users in a row.")] = 640,
    events: Annotated[int, typer.Option(min=1, help="Interactions of a user, on average.")] = 200,
    event_ids: Annotated[
        bool, typer.Option("--event-ids", help="Each with an event id of 36 characters.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure what each setting of the store costs."""
    torch.set_num_threads(1)
    names = "setting", "memory", "to it", "from it", "file", "a miss", "replay", "events/s"
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    with errors_without_traceback():
        if artefact is None:
            model = TiM4Rec(ModelConfig(n_items=BEAUTY_ITEMS))
        else:
            model = load_artefact(artefact).model
        costs = []
        for setting in SETTINGS:
            err.print(f"{_name(setting)} ...", markup=False, highlight=False)
            measured = measure(setting, model.state_layout, users, events, event_ids)
            costs.append(asyncio.run(measured))
    for cost in costs:
        table.add_row(
            _name(cost.setting),
            *(f"{value:,.0f}" for value in (cost.memory, cost.received, cost.sent, cost.file)),
            f"{cost.miss:,.0f}",
            f"{cost.replayed:,.1f}",
            f"{cost.rate:,.0f}",
        )
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "state_bytes": model.state_layout.nbytes()}
        asked = {"users": users, "events": events, "event_ids": event_ids}
        rows = [asdict(cost) for cost in costs]
        text = json.dumps({"machine": machine, "asked": asked, "rows": rows}, indent=2)
        json_file.write_text(text + "\n")
        err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


def _name(setting: Setting) -> str:
    """What differs from the first row."""
    changed = {
        name: value
        for name, value in asdict(setting).items()
        if value != getattr(SETTINGS[0], name)
    }
    if changed.get("snapshot_every") == NEVER:
        changed["snapshot_every"] = "no"
    shown = (f"{name.removeprefix('snapshot_')} {value}" for name, value in changed.items())
    return ", ".join(shown) or "defaults"


if __name__ == "__main__":
    typer.run(main)

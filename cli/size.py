"""`tim4rec size`: memory, traffic and disk to expect, before anything is bought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from cli.console import out, say
from cli.settings import chosen_settings
from model import ModelConfig, TiM4Rec
from model.artefact import load_artefact
from model.state import StateLayout
from service.catalogue.ask import RECENT
from service.engine import snapshots
from service.engine.capacity import pool_rows
from service.engine.pool import Row
from service.settings import Settings

# Bytes, measured on Valkey 9.1.2 with libc's malloc: the rest of what `benchmarks.store` and
# `benchmarks.record_size` counted, once the keys, ids and states in it are taken away.
KEY = 67
"""Memory of a key beside its name and value."""
COMPACT_EVENT = 9
"""Memory of an event in a compact hash, beside the text of its two fields."""
TABLE, FIELD = 120, 33
"""Memory of a hash that is not compact, and of each of its fields beside its text."""
COMPACT_FIELDS, COMPACT_TEXT = 512, 64
"""The store's defaults: a hash with more fields, or a longer text, is not compact."""
EVENT = 26
"""Of an event's value, beside the ids in it."""
FETCH = 154
"""To the store for a read of a record, beside the key; its answer is ANSWER."""
ANSWER = 63
APPEND = 24
"""More to the store for an appended event, beside its ids."""
OUTCOME = 24
"""More from the store for an appended event."""
EVENT_IN_ANSWER = 7
"""More from the store for each event in an answer, beside its value."""
SNAPSHOT = 50
"""To the store, and in its file, for a snapshot beside its key and value."""
LOGGED = 68
"""In the append-only file for an event, beside key, value and id."""
DROPPED = 84
"""More in it where an event drops another (`history_limit`), beside key and id."""

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Sizes:
    """Bytes of one user's things, for ids of these lengths."""

    layout: StateLayout
    settings: Settings
    user_id: int = 12
    item_id: int = 8
    event_id: int = 0

    @property
    def key(self) -> int:
        return len(self.settings.namespace) + 3 + self.user_id

    @property
    def snapshot_key(self) -> int:
        return len(self.settings.namespace) + 4 + 16 + self.user_id

    @property
    def value(self) -> int:
        return EVENT + self.item_id + self.event_id

    @property
    def id_field(self) -> int:
        return 2 + (self.event_id or 8)

    def kept(self, events: int) -> int:
        return min(events, self.settings.history_limit or events)

    def record(self, events: int) -> int:
        """Memory of the record of a user with so many interactions."""
        kept, digits = self.kept(events), len(str(events))
        known = min(kept, self.settings.dedup_window)
        fits = max(self.value, self.id_field) <= COMPACT_TEXT
        if fits and kept + known < COMPACT_FIELDS:
            fields = kept * (1 + digits + self.value) + known * self.id_field
            return KEY + self.key + fields + kept * COMPACT_EVENT
        fields = kept * (1 + digits + self.value + FIELD)
        return KEY + self.key + TABLE + fields + known * (self.id_field + digits + FIELD)

    def packed(self, events: int) -> int:
        """A snapshot's value; every interaction is taken to be with another item."""
        row = Row("", 0, count=events, recent=("0" * self.item_id,) * min(events, RECENT))
        row.seen.add(range(1, events + 1))
        about = snapshots.describe(snapshots.stamp(""), row)
        state = self.layout.new(1)
        return len(self.layout.pack(state, [about], self.settings.snapshot_precision)[0])

    def snapshot(self, events: int) -> int:
        """Memory of a user's snapshot."""
        return KEY + self.snapshot_key + self.packed(events)

    def append(self, events: int) -> tuple[float, float]:
        """To and from the store for one interaction of a user in the pool, snapshots included."""
        to = FETCH + self.key + APPEND + self.item_id + self.event_id
        # Before a snapshot is written, its record is asked for.
        asked = (FETCH + self.key) / self.settings.snapshot_every
        answered = ANSWER / self.settings.snapshot_every
        share = self._snapshot_written(events) + asked
        return to + share, ANSWER + OUTCOME + self.value + EVENT_IN_ANSWER + answered

    def fetch(self) -> tuple[float, float]:
        """To and from the store for a recommendation to a user in the pool."""
        return FETCH + self.key, ANSWER

    def miss(self, events: int, with_snapshot: bool) -> tuple[float, float]:
        """To and from the store for a user who is not in the pool."""
        page = min(self.kept(events), max(256, 2 * self.settings.snapshot_every))
        answered = ANSWER + page * (self.value + EVENT_IN_ANSWER)
        to = FETCH + self.key + 24 + self.snapshot_key
        return to, answered + (self.packed(events) if with_snapshot else 0)

    def file(self, events: int) -> float:
        """Growth of the append-only file with one interaction."""
        drops = self.kept(events) < events
        dropped = DROPPED + self.key + self.id_field if drops else 0
        logged = LOGGED + self.key + self.value + self.id_field
        return logged + dropped + self._snapshot_written(events)

    def _snapshot_written(self, events: int) -> float:
        """Its bytes, spread over the interactions between two."""
        each = SNAPSHOT + self.snapshot_key + self.packed(events)
        return each / self.settings.snapshot_every


def size(
    artefact: Annotated[
        Path | None,
        typer.Argument(help="Folder of the model. None: one of the default shape."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users with a record.")] = 1_000_000,
    events: Annotated[int, typer.Option(min=1, help="Interactions of a user.")] = 100,
    with_snapshot: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of users who have a snapshot: 1 after `warm`; else those who reached a "
            "multiple of snapshot_every within snapshot_ttl_s.",
        ),
    ] = 1.0,
    appends: Annotated[float, typer.Option(min=0, help="Interactions a second.")] = 100.0,
    recommendations: Annotated[
        float, typer.Option(min=0, help="Recommendations a second.")
    ] = 100.0,
    misses: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of both whose user is not in the pool."),
    ] = 0.1,
    user_id_bytes: Annotated[int, typer.Option(min=1, help="Length of a user id.")] = 12,
    item_id_bytes: Annotated[int, typer.Option(min=1, help="Length of an item id.")] = 8,
    event_id_bytes: Annotated[
        int, typer.Option(min=0, help="Length of an event id; 0: none. A UUID: 36.")
    ] = 0,
    snapshot_every: Annotated[
        int | None, typer.Option(help="As in the service.", show_default="64")
    ] = None,
    snapshot_precision: Annotated[
        str | None, typer.Option(help="float32 or float16.", show_default="float32")
    ] = None,
    dedup_window: Annotated[
        int | None, typer.Option(help="As in the service.", show_default="1000")
    ] = None,
    history_limit: Annotated[
        int | None, typer.Option(help="As in the service.", show_default="0")
    ] = None,
    pool_capacity: Annotated[
        int | None, typer.Option(help="As in the service.", show_default="16384")
    ] = None,
) -> None:
    """Say what memory, traffic and disk to expect of a store and of a process.

    A state's size is that of the model's layout. Bytes of a key, a field and a request were
    measured on Valkey 9.1 (`python -m benchmarks.store`, `python -m benchmarks.record_size`), and
    agree with a real store within 15 % (`tests/cli/test_size.py`). Fragmentation, and what a
    rewrite of the append-only file copies meanwhile, come on top. A Cluster divides the store's
    figures by its primaries; a replica doubles its primary's.
    """
    settings = chosen_settings(
        artefact=artefact or Path(),
        snapshot_every=snapshot_every,
        snapshot_precision=snapshot_precision,
        dedup_window=dedup_window,
        history_limit=history_limit,
        pool_capacity=pool_capacity,
    )
    model = load_artefact(artefact).model if artefact else TiM4Rec(ModelConfig(n_items=1))
    sizes = Sizes(model.state_layout, settings, user_id_bytes, item_id_bytes, event_id_bytes)
    records = users * sizes.record(events)
    kept = users * with_snapshot * sizes.snapshot(events)
    traffic = [
        appends * append + recommendations * fetch + (appends + recommendations) * misses * miss
        for append, fetch, miss in zip(
            sizes.append(events), sizes.fetch(), sizes.miss(events, with_snapshot > 0), strict=True
        )
    ]
    state = model.state_layout.nbytes()
    pool = pool_rows(settings.pool_capacity, model.state_layout, torch.device("cpu"))
    table = Table("", "each", "in all")
    table.add_row("store: records", f"{sizes.record(events):,} B", _bytes(records))
    table.add_row("store: snapshots", f"{sizes.snapshot(events):,} B", _bytes(kept))
    table.add_row("store: memory", "", _bytes(records + kept))
    table.add_row("to the store", f"{sizes.append(events)[0]:,.0f} B", f"{_bytes(traffic[0])}/s")
    table.add_row("from the store", f"{sizes.append(events)[1]:,.0f} B", f"{_bytes(traffic[1])}/s")
    daily = appends * sizes.file(events) * SECONDS_A_DAY
    table.add_row("append-only file", f"{sizes.file(events):,.0f} B", f"{_bytes(daily)}/day")
    table.add_row("a process: pool", f"{state:,} B", _bytes(state * pool))
    out.print(table)
    say(
        f"{users:,} users of {events:,} interactions. Bytes of a key, a field and a request: "
        "measured on Valkey 9.1 by benchmarks.store and benchmarks.record_size; of a state: "
        "the model's layout.",
        out,
    )


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"

"""How many bytes an interaction takes in the store, in memory and in the append-only file.

    python -m benchmarks.record_size --json runs/record_size.json

A store of its own, with the embedded store's options. A user for each length, one append an
interaction, once without event ids and once with ids of 36 characters (a UUID); item ids have 8.
Memory is what `MEMORY USAGE` says of the record, the file's share its growth before any rewrite.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from uuid import UUID

import redis
import typer
from rich.table import Table

from cli.console import err, errors_without_traceback, out
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, new_uid

START_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Size:
    """One user's record, in bytes. `encoding`: how the store keeps the hash."""

    events: int
    event_ids: bool
    encoding: str
    memory: int
    file: int


async def measure(url: str, folder: Path, lengths: list[int]) -> list[Size]:
    """The sizes of records of these lengths. Raises StoreError."""
    sizes = []
    with redis.Redis.from_url(url) as client:
        async with Store(url, timeout_s=60) as store:
            log = EventLog(store, page=1)
            for with_ids in (False, True):
                for length in lengths:
                    user, before = f"{length}-{with_ids}", _file_size(folder)
                    for n in range(length):
                        event_id = str(UUID(int=n)) if with_ids else None
                        event = NewEvent(new_uid(), f"{n:08}", START_MS + n, event_id)
                        (reply,) = await log.exchange([LogRequest(user, None, [event])])
                        if isinstance(reply, StoreError):
                            raise reply
                    key = f"tim4rec:u:{user}"
                    sizes.append(
                        Size(
                            length,
                            with_ids,
                            client.object("encoding", key).decode(),
                            client.memory_usage(key, samples=0),
                            _file_size(folder) - before,
                        )
                    )
    return sizes


def _file_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "appendonlydir").iterdir())


def main(
    lengths: Annotated[list[int] | None, typer.Argument(help="Interactions a user.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure the bytes that an interaction takes in the store."""
    with errors_without_traceback(), tempfile.TemporaryDirectory(prefix="tim4rec-") as name:
        folder = Path(name)
        with EmbeddedStore(folder, fsync="everysec") as url:
            sizes = asyncio.run(measure(url, folder, lengths or [10, 100, 200, 300, 1000, 10_000]))
    table = Table("interactions", "event ids", "encoding", "record", "each", "file, each")
    for size in sizes:
        table.add_row(
            f"{size.events:,}",
            "36 characters" if size.event_ids else "none",
            size.encoding,
            f"{size.memory:,}",
            f"{size.memory / size.events:.0f}",
            f"{size.file / size.events:.0f}",
        )
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(size) for size in sizes], indent=2) + "\n")
        err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

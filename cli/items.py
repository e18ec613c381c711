"""`tim4rec import-items`: the catalogue in bulk, past the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from pydantic import ValidationError

from cli.console import CommandError, out, say
from cli.progress import progress
from cli.settings import chosen_settings
from cli.store import DataDir, Namespace, Redis, opened, require_data_dir
from model.plain_file import open_plain
from model.strict_json import parse
from service.catalogue.item_store import ItemStore
from service.http.item_schemas import NewItem
from service.settings import Settings
from service.store.errors import StoreError

LISTED = 20
AT_ONCE = 1000
LONGEST_LINE = 1 << 20
_TEXTS = ("item_id", "title", "categories", "genres", "similar_to", "available_from",
          "available_until")  # fmt: skip
_LISTS = ("categories", "similar_to")


def import_items(
    items: Annotated[
        Path, typer.Argument(help="The items: CSV, CSV.gz, Parquet, or JSON lines (.jsonl).")
    ],
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
) -> None:
    """Write items into the catalogue, as PUT /items does; running services heed them at once.

    Columns: `item_id`; `title`, `categories` (or `genres`) and `similar_to` (each with | between
    several), `hidden`, `available_from`, `available_until`; every other column is an attribute,
    of the type that all of its values have. Empty cells say nothing. A JSON line is what POST
    /items/batch takes of one item.

    An item's record is replaced whole; items that are not in the file stay as they are. Nothing is
    written before all rows were found sound.
    """
    settings = chosen_settings(
        artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    records: dict[str, bytes] = {}
    faults: list[str] = []
    for place, row in _rows(items):
        try:
            item = NewItem.model_validate(row() if callable(row) else row)
            stored = item.stored(settings.max_item_bytes)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            faults.append(f"{place}: {field + ': ' if field else ''}{first['msg']}")
            continue
        except ValueError as error:
            faults.append(f"{place}: {error}")
            continue
        if item.item_id in records:
            faults.append(f"{place}: item_id {item.item_id!r} was there before")
        else:
            records[item.item_id] = stored
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:LISTED])
        more = f"\n  and {len(faults) - LISTED:,} more" if len(faults) > LISTED else ""
        if not skip_bad_rows:
            raise CommandError(
                f"{items}: {len(faults):,} rows can't be read; mend them or give "
                f"--skip-bad-rows\n{listed}{more}"
            )
        say(f"{items}: {len(faults):,} rows left out:\n{listed}{more}")
    started = time.perf_counter()
    try:
        asyncio.run(_write(records, settings))
    except StoreError as error:
        raise CommandError(f"{error}; run the same command again") from None
    seconds = time.perf_counter() - started
    say(f"{items}: {len(records):,} items written; {len(records) / seconds:,.0f} items/s", out)


async def _write(records: dict[str, bytes], settings: Settings) -> None:
    async with opened(settings) as store:
        items = ItemStore(store, namespace=settings.namespace)
        names = list(records)
        with progress("writing", len(names), "items") as advance:
            for start in range(0, len(names), AT_ONCE):
                part = names[start : start + AT_ONCE]
                await items.write({name: records[name] for name in part})
                advance(len(part))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Callable[[], Any]]]:
    """Where each row is, and what it says or what reads it."""
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            with open_plain(path) as file:
                lines = enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1)
                for number, line in lines:
                    if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                        raise CommandError(f"{path}: line {number} has {LONGEST_LINE:,} bytes")
                    if line.strip():
                        yield f"line {number}", partial(parse, line.rstrip(b"\r\n").decode())
            return
        open_plain(path).close()
        frame = _table(path)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CommandError(f"{path}: {reason}") from None
    if "item_id" not in frame.columns:
        raise CommandError(f"{path}: has no column item_id, only {', '.join(frame.columns)}")
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        yield f"row {number}", _record(row)


def _table(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    names = pl.read_csv(path, n_rows=0, infer_schema=False).columns
    texts = {name: pl.String for name in names if name in _TEXTS}
    return pl.read_csv(path, infer_schema_length=None, schema_overrides=texts)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            continue
        name = "categories" if name == "genres" else name
        if name in _LISTS and isinstance(value, str):
            value = [part.strip() for part in value.split("|") if part.strip()]
        if isinstance(value, datetime | date):
            value = value.isoformat()
        if name in NewItem.model_fields and name != "attributes":
            found[name] = str(value) if name == "item_id" else value
        else:
            attributes[name] = value
    return found | ({"attributes": attributes} if attributes else {})

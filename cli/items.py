"""`tim4rec import-items`: the catalogue in bulk, past the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from pydantic import ValidationError

from cli.attribute_types import TOLD_BOOLEANS, Type, parse_types, typed_columns
from cli.console import CommandError, out, say
from cli.progress import progress
from cli.settings import chosen_settings
from cli.store import DataDir, Namespace, Redis, opened, require_data_dir
from cli.table_options import Columns, Encoding
from model.plain_file import open_plain
from model.strict_json import parse
from service.catalogue.item_store import ItemStore
from service.http.item_schemas import NewItem
from service.settings import Settings
from service.store.errors import StoreError
from training.item_table import NO_ATTRIBUTES
from training.table_files import NULL_WORDS, read_pieces
from training.table_format import TableFormat

LISTED = 20
AT_ONCE = 1000
LONGEST_LINE = 1 << 20
_NOTHING = frozenset(NULL_WORDS)
_LISTS = ("categories", "similar_to")


def import_items(
    items: Annotated[Path, typer.Argument(help="The items: CSV, Parquet, or JSON lines (.jsonl).")],
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
    columns: Columns = None,
    encoding: Encoding = None,
    types: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=TYPE,...",
            help="Of attributes: number, boolean (also 1 and 0) or text, such as "
            "price=number,ean=text.",
            show_default="what all values of a column are",
            rich_help_panel="Files",
        ),
    ] = None,
) -> None:
    """Write items into the catalogue, as PUT /items does; running services heed them at once.

    Columns: `item_id`; `title`, `categories` (or `genres`) and `similar_to` (each with | between
    several), `hidden`, `available_from`, `available_until`; every other column is an attribute,
    of the type that all of its values have: numbers, unless one has a leading zero, booleans
    (true/false, t/f, yes/no), or text. Empty cells say nothing. A JSON line is what POST
    /items/batch takes of one item.

    An item's record is replaced whole; items that are not in the file stay as they are. Nothing is
    written before all rows were found sound.
    """
    settings = chosen_settings(
        artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
    )
    require_data_dir(settings)
    form = TableFormat.parse(columns, encoding)
    records: dict[str, bytes] = {}
    faults: list[str] = []
    for row in _rows(items, form, parse_types(types)):
        place = row.place
        try:
            item = row.item()
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


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: where it is, and what it says, or what reads it, or why it can't be read."""

    place: str
    said: dict[str, Any] | Callable[[], Any]
    fault: str | None = None

    def item(self) -> NewItem:
        """Raises ValueError."""
        if self.fault is not None:
            raise ValueError(self.fault)
        return NewItem.model_validate(self.said() if callable(self.said) else self.said)


def _rows(path: Path, form: TableFormat, types: Mapping[str, Type]) -> Iterator[_Row]:
    if path.suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
    else:
        yield from _table_rows(path, form, types)


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        with open_plain(path) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    raise CommandError(f"{path}: line {number} has {LONGEST_LINE:,} bytes")
                if line.strip():
                    yield _Row(f"line {number}", partial(parse, line.rstrip(b"\r\n").decode()))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _table_rows(path: Path, form: TableFormat, types: Mapping[str, Type]) -> Iterator[_Row]:
    frames, notes = [], dict[str, None]()
    for piece in read_pieces(path, ["item_id"], None, form):
        frames.append(piece.frame)
        notes |= dict.fromkeys(piece.notes)
        for bad in piece.bad:
            yield _Row(f"line {bad.line}", {}, bad.reason)
    frame = pl.concat(frames)
    unknown = [name for name in types if name not in frame.columns]
    if unknown:
        raise CommandError(f"--types: {path} has no column {', '.join(unknown)}")
    lines, faults = frame["line"], dict[int, str]()
    said = []
    for column in typed_columns(frame.drop(*NO_ATTRIBUTES, strict=False), types):
        frame = frame.with_columns(column.values)
        said.append(f"{column.values.name} {column.said}")
        for place, fault in column.faults:
            faults.setdefault(place, fault)
    if said:
        notes[f"attributes: {', '.join(said)}"] = None
    for note in notes:
        say(f"{path}: {note}")
    for place, row in enumerate(frame.drop("line").iter_rows(named=True)):
        yield _Row(f"line {lines[place]}", _record(row), faults.get(place))


def _record(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or value == "" or (isinstance(value, str) and value in _NOTHING):
            continue
        name = "categories" if name == "genres" else name
        if name in _LISTS and isinstance(value, str):
            value = [part.strip() for part in value.split("|") if part.strip()]
        if name == "hidden" and isinstance(value, str):
            value = TOLD_BOOLEANS.get(value.lower(), value)
        if isinstance(value, datetime | date):
            value = value.isoformat()
        if name in NewItem.model_fields and name != "attributes":
            found[name] = str(value) if name == "item_id" else value
        else:
            attributes[name] = value
    return found | ({"attributes": attributes} if attributes else {})

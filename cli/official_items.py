"""The item list of an official model, which its checkpoint lacks: text, CSV or JSON."""

from __future__ import annotations

import csv
import io
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cli.console import CommandError
from cli.plain_text import parse_json, read_text
from model.items import Items, ItemsError, items_bytes

PADDING = "[PAD]"
"""RecBole's token of item 0; a list that starts with it is taken without it."""


def read_items(path: Path, wanted: int) -> Items:
    """The item list, its popularity all 0 where it has none. Raises CommandError."""
    text = read_text(path, items_bytes(wanted))
    if ".csv" in path.suffixes:
        columns = _csv_columns(path, text)
    elif ".json" in path.suffixes:
        columns = _json_columns(path, text)
    else:
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        columns = {"ids": [line.removesuffix("\r") for line in lines]}
    ids = columns["ids"]
    for name, column in columns.items():
        if len(column) != len(ids):
            raise CommandError(f"{path}: {len(column)} {name} for {len(ids)} ids")
    if ids and ids[0] == PADDING:
        columns = {name: column[1:] for name, column in columns.items()}
        ids = columns["ids"]
    first: dict[str, int] = {}
    for place, item in enumerate(ids, 1):
        if not item.strip():
            raise CommandError(f"{path}: item {place} has no id")
        if first.setdefault(item, place) != place:
            raise CommandError(
                f"{path}: items {first[item]} and {place} are both {reprlib.repr(item)}"
            )
    if len(ids) != wanted:
        raise CommandError(
            f"{path}: {len(ids)} items, but the checkpoint has {wanted} (and the padding): give "
            "the list of the data set it was trained on, in the order of its indices"
        )
    popularity = [_count(path, i, v) for i, v in enumerate(columns.get("popularity", []), 1)]
    if popularity and not any(popularity):
        raise CommandError(f"{path}: popularity is 0 for every item: leave it out, or give --log")
    counts = np.array(popularity or [0] * wanted, dtype=np.int64)
    try:
        return Items(ids, counts, columns.get("titles"), columns.get("categories"))
    except ItemsError as error:
        raise CommandError(f"{path}: {error}") from None


def _csv_columns(path: Path, text: str) -> dict[str, list[Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if "item_id" not in header:
            raise CommandError(f"{path}: no column item_id; the columns are {', '.join(header)}")
        for row in reader:
            if len(row) != len(header):
                raise CommandError(
                    f"{path}: line {reader.line_num}: {len(row)} fields instead of {len(header)}"
                )
            rows.append(row)
    except csv.Error as error:
        raise CommandError(f"{path}: line {reader.line_num}: {error}") from None
    table = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    columns: dict[str, list[Any]] = {"ids": table["item_id"]}
    if "popularity" in table:
        columns["popularity"] = table["popularity"]
    if "title" in table:
        columns["titles"] = [title.strip() or None for title in table["title"]]
    categories = table.get("categories", table.get("genres"))
    if categories is not None:
        columns["categories"] = [
            [part.strip() for part in cell.split("|") if part.strip()] for cell in categories
        ]
    return columns


def _json_columns(path: Path, text: str) -> dict[str, list[Any]]:
    value = parse_json(path, text)
    columns = value if isinstance(value, dict) else {"ids": value}
    known = ("ids", "popularity", "titles", "categories")
    columns = {name: columns[name] for name in known if columns.get(name) is not None}
    if "ids" not in columns or not all(isinstance(column, list) for column in columns.values()):
        raise CommandError(f'{path}: must be an array of ids, or {{"ids": [...]}}')
    checks: dict[str, Callable[[Any], bool]] = {
        "ids": lambda cell: isinstance(cell, str | int) and not isinstance(cell, bool),
        "titles": lambda cell: cell is None or isinstance(cell, str),
        "categories": lambda cell: (
            isinstance(cell, list) and all(isinstance(part, str) for part in cell)
        ),
    }
    for name, sound in checks.items():
        for place, cell in enumerate(columns.get(name, []), 1):
            if not sound(cell):
                raise CommandError(
                    f"{path}: {name}, entry {place}: {reprlib.repr(cell)} can't be used"
                )
    columns["ids"] = [str(item) for item in columns["ids"]]
    return columns


def _count(path: Path, place: int, value: object) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
        raise CommandError(f"{path}: item {place}: popularity {reprlib.repr(value)} is not a count")
    return number

"""`tim4rec import-official`: a checkpoint of the official implementation as an artefact.

RecBole's trainer pickles its whole Config object beside the weights. It is read with torch's
weights-only unpickler and inert stand-ins for all that is not torch's, so that no code of the
checkpoint is ever run or imported.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
import typer
from torch import Tensor

from cli.console import CommandError, err, out
from model import TiM4Rec
from model.artefact import save_artefact
from model.config import ConfigError
from model.items import Items, ItemsError, items_bytes
from model.official import OfficialWeightsError, load_official
from model.plain_file import open_plain, read_bounded, read_plain
from model.strict_json import parse, shown
from training.card import TIME_PATHS
from training.interactions import read_log
from training.tables import COMPRESSION_FAULTS

SETTINGS: dict[str, type] = {
    "hidden_size": int,
    "num_layers": int,
    "expand": int,
    "head_dim": int,
    "d_state": int,
    "d_conv": int,
    "is_ffn": bool,
    "dropout_prob": float,
    "norm_eps": float,
    "is_time": bool,
    "MAX_ITEM_LIST_LENGTH": int,
    "p2p_residual": bool,
    "time_drop_out": float,
}
"""The official settings that decide the model."""

PADDING = "[PAD]"
"""RecBole's token of item 0; a list that starts with it is taken without it."""
CONFIG_BYTES = 1 << 17
"""Most of an official config; a few thousand are usual."""
_DEEPEST = 20  # of a config as YAML
_LONGEST_REASON = 300  # characters of what torch says
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Foreign:
    """Stands in for any class or function of a checkpoint: takes all arguments, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


@dataclass(frozen=True)
class Checkpoint:
    """What is used of a checkpoint; `settings` are empty where it carries no config."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    epoch: int | None
    sha256: str

    @property
    def n_items(self) -> int:
        return self.weights["item_embedding.weight"].shape[0] - 1


def import_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="The .pth file that the official code (RecBole) saved.")
    ],
    items: Annotated[
        Path,
        typer.Option(
            help="The item ids in the order of their indices 1, 2, ...: a text file with one a "
            "line, a CSV with item_id and optional popularity, title, categories, or JSON (an "
            'array of ids, or {"ids": [...], "popularity": [...]}).'
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the artefact goes.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="The official config as JSON or YAML; needed where the checkpoint carries none, "
            "and wins where both name a setting."
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="An interaction log to count each item's popularity in (what users without a "
            "history get). Without it: the list's own column, else the order of the list."
        ),
    ] = None,
) -> None:
    """Turn a checkpoint of the official TiM4Rec code into a model that can be served.

    A checkpoint has no vocabulary. RecBole gives the list for `--items` from the data set that
    the model was trained on:

    `open("items.txt", "w").write("\\n".join(dataset.field2id_token["item_id"][1:]))`

    A model with time reads the whole window at every recommendation; it can't be stepped.
    """
    found = read_checkpoint(checkpoint)
    settings = dict(found.settings)
    if config is not None:
        settings |= _chosen(_read_config(config), config)
    if not settings:
        raise CommandError(
            f"{checkpoint}: carries no config: give the official one with --config FILE"
        )
    vocabulary, popularity_from = _with_popularity(_read_items(items, found.n_items), items, log)
    try:
        model = load_official(settings, found.weights).float()
    except (OfficialWeightsError, ConfigError) as error:
        raise CommandError(f"{checkpoint}: {error}") from None
    metrics = {
        "official": {
            "checkpoint": checkpoint.name,
            "sha256": found.sha256,
            "epoch": found.epoch,
            "settings": settings,
        }
    }
    card = _card(checkpoint, found, model, settings, popularity_from)
    identity = save_artefact(folder, model, vocabulary, metrics, card)
    if "norm_eps" not in settings:
        _say(f"{checkpoint}: norm_eps is not in the config: the official default, 1e-12, is taken")
    _say(f"popularity: {popularity_from}")
    out.print(
        f"{folder}: {len(vocabulary):,} items, time path {model.config.time}, model {identity}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Weights and settings of a file that `torch.save` wrote; nothing in it is executed.

    Raises CommandError where it is no such file, or holds no weights of a TiM4Rec model.
    """
    try:
        with open_plain(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            _require_stored(file)
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(Foreign, name) for name in foreign]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in every way there is
        raise CommandError(
            f"{path}: not readable as a torch checkpoint: {_reason(error)}"
        ) from None
    if not isinstance(content, Mapping):
        raise CommandError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping) or "item_embedding.weight" not in weights:
        raise CommandError(f"{path}: no state_dict with item_embedding.weight: not a TiM4Rec model")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CommandError(f"{path}: {shown(name)} is not a floating-point tensor")
        if not all(end.float().isfinite() for end in tensor.detach().aminmax()):
            raise CommandError(
                f"{path}: {shown(name)} has values that are not finite: training diverged"
            )
    if weights["item_embedding.weight"].dim() != 2 or len(weights["item_embedding.weight"]) < 2:
        raise CommandError(f"{path}: item_embedding.weight has no items")
    epoch = content.get("epoch")
    return Checkpoint(
        settings=_chosen(_config_of(content.get("config")), path),
        weights=dict(weights),
        epoch=epoch if isinstance(epoch, int) and 0 <= epoch < 2**63 else None,
        sha256=sha256,
    )


def _require_stored(file: BinaryIO) -> None:
    """Raises ValueError where a checkpoint's parts take more memory than its file has bytes: torch
    writes them one after the other, and never compressed."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("a part of it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its parts overlap")


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that are all there: one may be large by strides alone."""
    return (
        isinstance(value, Tensor)
        and value.dtype in _DTYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and 0 < value.nbytes <= value.untyped_storage().nbytes()
    )


def _reason(error: Exception) -> str:
    """One line; of torch's own pages only what went wrong, not its advice to trust the file."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "weights_only" in lines[0]:
        lines = lines[-2:]
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__


def _config_of(config: object) -> Mapping[str, Any]:
    """RecBole's Config keeps what it settled on in `final_config_dict`."""
    if isinstance(config, Foreign):
        config = config.state
    if isinstance(config, Mapping):
        final = config.get("final_config_dict", config)
        if isinstance(final, Mapping):
            return final
    return {}


def _chosen(config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The settings that matter, each of its type. Raises CommandError naming the one that isn't."""
    chosen: dict[str, Any] = {}
    for name, kind in SETTINGS.items():
        value = config.get(name)
        if value is None:
            continue
        try:
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, int | float | str
            ):
                raise ValueError
            chosen[name] = kind(value)
            if not math.isfinite(float(value)) or (kind is int and chosen[name] != float(value)):
                raise ValueError
        except (ValueError, OverflowError):
            wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
            found = "an object" if isinstance(value, Foreign) else reprlib.repr(value)
            raise CommandError(f"{source}: {name} must be {wanted}, not {found}") from None
    return chosen


def _read_config(path: Path) -> Mapping[str, Any]:
    text = _read_text(path, CONFIG_BYTES)
    if path.suffix == ".json":
        value = _json(path, text)
    else:
        try:
            yaml = import_module("yaml")
        except ImportError:
            raise CommandError(
                f"{path}: reading YAML needs PyYAML: install pyyaml, or give the config as .json"
            ) from None
        try:
            _require_plain_yaml(yaml, text)
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CommandError(f"{path}: not readable as YAML: {reason}") from None
    if not isinstance(value, dict):
        raise CommandError(f"{path}: must hold settings by name, such as hidden_size: 64")
    if not SETTINGS.keys() & value.keys():
        raise CommandError(f"{path}: none of the official settings in it ({', '.join(SETTINGS)})")
    return value


def _require_plain_yaml(yaml: Any, text: str) -> None:
    """Raises ValueError before what takes long to read, or grows without end in memory."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias (*name) in it: write its value out")


def _read_items(path: Path, wanted: int) -> Items:
    """The item list, its popularity all 0 where it has none. Raises CommandError."""
    text = _read_text(path, items_bytes(wanted))
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
    value = _json(path, text)
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


def _with_popularity(items: Items, path: Path, log: Path | None) -> tuple[Items, str]:
    """The items with a popularity that orders them, and where it came from."""
    if log is not None:
        counts = read_log(log).frame["item_id"].value_counts()
        by_item = dict(counts.rows())
        popularity = [by_item.get(item, 0) for item in items.ids]
        if not any(popularity):
            raise CommandError(f"{log}: none of its items is in {path}: ids of another data set?")
        told = sum(popularity), sum(by_item.values())
        source = f"counted in {log.name}, where {told[0]:,} of {told[1]:,} interactions are known"
    elif items.popularity.any():
        return items, f"the column of {path.name}"
    else:
        popularity = list(range(len(items), 0, -1))
        source = (
            f"not given, so the order of {path.name} stands in for it; give --log FILE to count it"
        )
    counted = np.array(popularity, dtype=np.int64)
    return Items(items.ids, counted, items.titles, items.categories), source


def _card(
    path: Path, found: Checkpoint, model: TiM4Rec, settings: Mapping[str, Any], popularity: str
) -> str:
    epoch = "" if found.epoch is None else f", after epoch {found.epoch}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""# TiM4Rec, imported from an official checkpoint

From `{path.name}` (SHA-256 `{found.sha256}`{epoch}), written by the official implementation. It
was trained and chosen there; nothing was measured here. `tim4rec evaluate` measures it.

| official setting | |
| --- | --- |
{rows}

Time path: {TIME_PATHS[model.config.time]}. {found.n_items:,} items; weights in float32.

Popularity: {popularity}.
"""


def _json(path: Path, text: str) -> Any:
    try:
        return parse(text, constants=True)  # what Python writes; no place here takes them
    except ValueError as error:
        raise CommandError(f"{path}: not readable as JSON: {error}") from None


def _read_text(path: Path, most: int) -> str:
    """The text of a file that has at most so many bytes, packed and unpacked."""
    data = read_plain(path, most)
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                unpacked = read_bounded(file, most)
            if unpacked is None:
                raise CommandError(f"{path}: has more than {most:,} bytes unpacked")
            data = unpacked
        return data.decode("utf-8-sig")
    except (*COMPRESSION_FAULTS, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}: save it as UTF-8 text") from None


def _say(line: str) -> None:
    err.print(line, markup=False, highlight=False, soft_wrap=True)

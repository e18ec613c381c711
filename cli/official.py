"""`tim4rec import-official`: a checkpoint of the official implementation as an artefact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cli.console import CommandError, out, say
from cli.official_checkpoint import Checkpoint, read_checkpoint
from cli.official_config import read_config, settings_of
from cli.official_items import read_items
from model import TiM4Rec
from model.artefact import save_artefact
from model.config import ConfigError
from model.items import Items
from model.official import OfficialWeightsError, load_official
from training.card import TIME_PATHS
from training.interactions import read_log


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
        settings |= settings_of(read_config(config), config)
    if not settings:
        raise CommandError(
            f"{checkpoint}: carries no config: give the official one with --config FILE"
        )
    vocabulary, popularity_from = _with_popularity(read_items(items, found.n_items), items, log)
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
        say(f"{checkpoint}: norm_eps is not in the config: the official default, 1e-12, is taken")
    say(f"popularity: {popularity_from}")
    say(
        f"{folder}: {len(vocabulary):,} items, time path {model.config.time}, model {identity}",
        out,
    )


def _with_popularity(items: Items, path: Path, log: Path | None) -> tuple[Items, str]:
    """The items with a popularity that orders them, and where it came from."""
    if log is not None:
        counts = read_log(log).frame["item_id"].value_counts()
        by_item = dict(counts.rows())
        popularity = [by_item.get(item, 0) for item in items.ids]
        if not any(popularity):
            raise CommandError(f"{log}: none of its items is in {path}: ids of another data set?")
        found = sum(popularity), sum(by_item.values())
        source = f"counted in {log.name}, where {found[0]:,} of {found[1]:,} interactions are known"
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

"""Item tables: CSV or Parquet in, clean columns out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from model.items import Items
from training.dataset import Dataset
from training.item_features import ItemFeatures
from training.table_files import NULL_WORDS, read_pieces
from training.table_format import PLAIN, TableFormat
from training.tables import BadRow, id_fault, nothing_in, refuse, split_off

ITEM_COLUMNS = ("title", "categories", "genres")
"""Of an item table, beside `item_id`."""
NO_ATTRIBUTES = (
    "item_id", *ITEM_COLUMNS, "similar_to", "hidden", "available_from", "available_until", "line",
)  # fmt: skip
"""Columns that are no attribute; all others are."""


def read_items(
    path: Path, *, skip_bad_rows: bool = False, form: TableFormat = PLAIN
) -> pl.DataFrame:
    """An item table: item_id (String), title (String or null), categories (List[String]); then the
    attributes as they are there.

    Read from the columns `item_id`, `title` and `categories` or `genres` (`|`-separated); the last
    two may be missing. Raises InputError as `read_log` does; an id listed twice is a bad row.
    """
    frames, bad = [], list[BadRow]()
    for piece in read_pieces(path, ["item_id"], None, form):
        frames.append(piece.frame)
        bad += piece.bad
    raw = pl.concat(frames)
    raw = raw.with_columns(
        pl.col(name).cast(pl.String)
        for name in ITEM_COLUMNS
        if name in raw.columns and raw.schema[name] != pl.List(pl.String)
    )
    listed_before = pl.when(pl.col("item_id").is_first_distinct().not_()).then(
        pl.format("item_id '{}' was listed before", "item_id")
    )
    frame, bad = split_off(raw, pl.coalesce(id_fault("item_id"), listed_before), bad)
    if not skip_bad_rows:
        refuse(path, bad, len(bad))
    if frame.is_empty():
        raise nothing_in(path, "items", bad, len(bad))
    title = pl.col("title") if "title" in frame.columns else pl.lit(None, pl.String)
    source = next((name for name in ("categories", "genres") if name in frame.columns), None)
    if source is None:
        categories = pl.lit([], pl.List(pl.String))
    elif frame.schema[source] == pl.List(pl.String):
        categories = pl.col(source).fill_null([])
    else:
        parts = (
            pl.col(source).fill_null("").str.split("|").list.eval(pl.element().str.strip_chars())
        )
        categories = parts.list.eval(pl.element().filter(pl.element() != ""))
    return frame.select(
        "item_id",
        pl.when(title.is_in(["", *NULL_WORDS]).not_()).then(title).alias("title"),
        categories.alias("categories"),
        pl.exclude(*NO_ATTRIBUTES),
    )


def with_known(items: Items, table: pl.DataFrame | None) -> pl.DataFrame | None:
    """A table, and below it what a vocabulary says of the items that the table lacks."""
    if items.titles is None and items.categories is None:
        return table
    known = pl.DataFrame(
        {
            "item_id": items.ids,
            "title": items.titles or [None] * len(items),
            "categories": items.categories or [[]] * len(items),
        },
        schema={"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)},
    )
    if table is None:
        return known
    return pl.concat([table, known], how="diagonal").unique(
        "item_id", keep="first", maintain_order=True
    )


def with_features(dataset: Dataset, table: pl.DataFrame | None) -> Dataset:
    """A data set, with what a table says that its items have in common."""
    features = None if table is None else ItemFeatures.of(dataset.item_ids, table)
    return replace(dataset, features=features)


def items_of(dataset: Dataset, table: pl.DataFrame | None) -> Items:
    """The vocabulary of a data set, with titles and categories where there is a table of them.

    Raises ItemsError for an id that no vocabulary can have.
    """
    if table is None:
        return Items(dataset.item_ids, dataset.popularity())
    ids = pl.DataFrame({"item_id": dataset.item_ids}, schema={"item_id": pl.String})
    joined = ids.join(table, on="item_id", how="left", maintain_order="left")
    return Items(
        dataset.item_ids,
        dataset.popularity(),
        joined["title"].to_list(),
        joined["categories"].fill_null([]).to_list(),
    )

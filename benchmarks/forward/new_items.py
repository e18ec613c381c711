"""Items of the item table that have had no event: what a service ranks them by."""

from __future__ import annotations

import polars as pl

from benchmarks.forward.training import Refitted
from service.catalogue.cold_start import summed
from service.catalogue.turns import at_once
from training import new_items
from training.forward.models import Served

NONE, CATEGORIES, CONTENT = "none", "categories", "content"
HOW = (NONE, CATEGORIES, CONTENT)


def with_table(models: Refitted, table: pl.DataFrame, how: str) -> Refitted:
    """The same, but that all items of a table are ranked: by the model's content, or as a service
    does without one, by a regression from their categories."""
    ranked = new_items.with_table if how == CONTENT else _by_categories
    return Refitted(ranked(models.base, table), models.since_ms, ranked(models.refitted, table))


def _by_categories(served: Served, table: pl.DataFrame) -> Served:
    categories = dict(table.select("item_id", "categories").iter_rows())
    ids = served.item_ids
    vectors = served.model.scoring_vectors.detach().numpy()[1:]
    cold = at_once(summed(vectors, lambda row: categories.get(ids[row - 1], ())))()
    return new_items.with_new_items(
        served, {item: cold.vector((), own) for item, own in categories.items()}
    )

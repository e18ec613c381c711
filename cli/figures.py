"""How good a model is, in lines for a person."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation import ResultRow, SeenItems

IN_WORDS: dict[SeenItems, str] = {
    "kept": "seen items kept, as in papers",
    "weighed": "seen items weighed: kept, with the repeat bias",
    "filtered": "seen items filtered",
}


def figures(rows: Sequence[ResultRow], mode: str = "parallel", *, every: bool = False) -> list[str]:
    """A line for each way to treat seen items, of one mode and whole histories.

    every: at each request time, otherwise at an unknown one where there is such.
    """
    whole = [row for row in rows if row.mode == mode and row.history == "whole"]
    asked = min((row.request_time for row in whole), default=False)
    return [
        f"{IN_WORDS[row.seen]}, request time {'known' if row.request_time else 'unknown'}: "
        f"HR@10 {row.metrics['HR@10']:.4f}  NDCG@10 {row.metrics['NDCG@10']:.4f}"
        for row in whole
        if every or row.request_time == asked
    ]

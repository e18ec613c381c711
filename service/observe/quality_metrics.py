"""What is counted of the interactions that are judged (quality_sample)."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

from service.observe.registry import count, counter, counters_of

_events = counters_of(
    "tim4rec_quality_events",
    "Interactions judged (quality_sample), by the user's model and whether it knows the item",
    "model",
    "item",
)
_hits, _ndcg, _reciprocal_ranks = (
    counters_of(f"tim4rec_quality_{name}", meaning, "model", "item", "by")
    for name, meaning in (
        (
            "hits",
            "Interactions judged whose item was among the 10 that the user would have been given "
            "just before (served), or among the 10 most popular (popularity)",
        ),
        ("ndcg", "Sum over these of 1 / log2(rank + 1); a judged interaction: NDCG@10"),
        ("reciprocal_ranks", "Sum over these of 1 / rank; a judged interaction: MRR@10"),
    )
)
FAILURES = counter(
    "tim4rec_quality_failures", "Interactions of the quality sample that could not be judged"
)


class Quality:
    """What is counted of the interactions judged, by model and item: `known` to it, or `new`. To be
    made in the thread of the event loop."""

    def __init__(self, model: str, item: Literal["known", "new"]) -> None:
        self._events = _events(model, item)
        counters = _hits, _ndcg, _reciprocal_ranks
        self._served = [of(model, item, "served") for of in counters]
        self._popularity = [of(model, item, "popularity") for of in counters]

    def count(self, served: int | None, popular: int | None) -> None:
        """An interaction, by the rank of its item, from 1; None: not among the best."""
        self._events.inc()
        for rank, counters in ((served, self._served), (popular, self._popularity)):
            if rank is not None:
                gains = 1, 1 / math.log2(rank + 1), 1 / rank
                count(*zip(counters, gains, strict=True))


quality = cache(Quality)

"""Where a policy of a walk forward is behind the best of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from benchmarks.forward.summary import Figures

METRICS = ("HR@10", "NDCG@10")
LEAST_EVENTS = 3000
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Behind:
    """Means over the events of a slice in a period, from 1 on; None: in all of them.

    own: of the policy; best: of `other`, asked at the same time or at none.
    """

    slice: str
    period: int | None
    events: int
    asked: str
    metric: str
    own: float
    best: float
    other: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def behind(figures: Sequence[Figures], policy: str) -> list[Behind]:
    """Where it has at least `LEAST_EVENTS` events and the best of the others has more, by more than
    the share `TOLERANCE`. Policies are called `NAME, TIME ASKED`, or `NAME` if none is."""
    found = []
    for row in figures:
        name, _, asked = row.policy.partition(", ")
        if name == policy:
            others = [
                other
                for other in figures
                if other.slice == row.slice
                and other is not row
                and (other.policy.endswith(f", {asked}") or ", " not in other.policy)
            ]
            found += [place for place in _places(row, others, asked) if _is_behind(place)]
    return found


def _places(row: Figures, others: Sequence[Figures], asked: str) -> Iterator[Behind]:
    for period in (None, *range(1, len(row.periods) + 1)):
        means = {other.policy: _means(other, period) for other in (row, *others)}
        for metric in METRICS:
            values = {policy: own[metric] for policy, own in means.items() if own is not None}
            if values:
                own = values.pop(row.policy)
                best = max(values, key=values.__getitem__)
                events = _events(row, period)
                yield Behind(row.slice, period, events, asked, metric, own, values[best], best)


def _means(row: Figures, period: int | None) -> dict[str, float] | None:
    return row.total if period is None else row.periods[period - 1]


def _events(row: Figures, period: int | None) -> int:
    return row.events if period is None else row.period_events[period - 1]


def _is_behind(place: Behind) -> bool:
    return place.events >= LEAST_EVENTS and place.own < (1 - TOLERANCE) * place.best


def table(places: Sequence[Behind], policy: str) -> Table:
    shown = Table(
        "slice", "period", "events", "asked", "metric", policy, "best of the others", "of",
        title=f"{policy}, more than {TOLERANCE:.0%} behind on {LEAST_EVENTS:,} events or more: "
        f"{len(places) or 'nowhere'}",
    )  # fmt: skip
    for place in places:
        shown.add_row(
            place.slice,
            "all" if place.period is None else str(place.period),
            f"{place.events:,}",
            place.asked,
            place.metric,
            f"{place.own:.4f}",
            f"{place.best:.4f} ({place.own / place.best - 1:+.1%})",
            place.other,
        )
    return shown

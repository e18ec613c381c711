"""Figures of a walk forward in time: by slice and period, with an interval over users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from training.bootstrap import Float64s, interval
from training.dataset import Int64s
from training.forward.walk import Bools, Walk
from training.metrics import gains

METRICS = ("HR@10", "NDCG@10", "MRR@10")
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one policy in one slice: means over events by metric.

    periods: each period's, None where the slice has no event there; intervals: of the total.
    """

    policy: str
    slice: str
    events: int
    period_events: list[int]
    total: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    periods: list[dict[str, float] | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(walk: Walk, ranks: Mapping[str, Int64s]) -> list[Figures]:
    """The figures of every slice that has an event, by slice, then policy."""
    by_metric = {
        name: {metric: gains(own, metric) for metric in METRICS} for name, own in ranks.items()
    }
    return [
        _figures(walk, policy, name, chosen, values)
        for name, chosen in walk.slices().items()
        if chosen.any()
        for policy, values in by_metric.items()
    ]


def _figures(
    walk: Walk, policy: str, name: str, chosen: Bools, values: Mapping[str, Float64s]
) -> Figures:
    users = walk.events.users[walk.rows[chosen]]
    parts = [chosen & (walk.periods == period) for period in range(len(walk.borders))]
    return Figures(
        policy=policy,
        slice=name,
        events=int(chosen.sum()),
        period_events=[int(part.sum()) for part in parts],
        total=_means(values, chosen),
        intervals={
            metric: interval(users, own[chosen], resamples=RESAMPLES)
            for metric, own in values.items()
        },
        periods=[_means(values, part) if part.any() else None for part in parts],
    )


def _means(values: Mapping[str, Float64s], chosen: Bools) -> dict[str, float]:
    return {metric: float(own[chosen].mean()) for metric, own in values.items()}


def tables(figures: list[Figures]) -> list[Table]:
    """One a slice: HR@10 / NDCG@10 in each period, then the total with its intervals."""
    found: dict[str, Table] = {}
    for row in figures:
        if row.slice not in found:
            head = [f"{number}: {n:,}" for number, n in enumerate(row.period_events, 1)]
            found[row.slice] = Table(
                "", *head, *METRICS, title=f"{row.slice}, {row.events:,}: HR@10 / NDCG@10"
            )
        found[row.slice].add_row(
            row.policy,
            *(_both(period) for period in row.periods),
            *(
                f"{row.total[metric]:.4f} ({low:.4f}–{high:.4f})"
                for metric, (low, high) in row.intervals.items()
            ),
        )
    return list(found.values())


def _both(period: Mapping[str, float] | None) -> str:
    return "" if period is None else f"{period['HR@10']:.4f} / {period['NDCG@10']:.4f}"

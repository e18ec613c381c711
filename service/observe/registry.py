"""Metrics are made here, so that all of them are exported together, in Prometheus' conventions.

Counters are exported from the start, so that the first thing they count is seen to grow. Only the
thread of the event loop may change a metric.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REGISTRY = CollectorRegistry()


def counter(name: str, meaning: str) -> Counter:
    return Counter(name, meaning, registry=REGISTRY)


def counters(name: str, meaning: str, label: str, known: tuple[str, ...]) -> dict[str, Counter]:
    """A counter for each value of the label."""
    labelled = Counter(name, meaning, [label], registry=REGISTRY)
    return {value: labelled.labels(value) for value in known}


def counters_of(name: str, meaning: str, *labels: str) -> Callable[..., Counter]:
    """Makes the counter of values of the labels. Kept, because the library's `labels` takes longer
    than what it is called for."""
    return cache(Counter(name, meaning, labels, registry=REGISTRY).labels)


def histograms_of(name: str, meaning: str, *labels: str) -> Callable[..., Histogram]:
    """The same of histograms of seconds."""
    return cache(Histogram(name, meaning, labels, buckets=SECONDS, registry=REGISTRY).labels)


def gauge_over(
    over: Literal["livesum", "livemin", "livemax", "livemostrecent"],
) -> Callable[..., Gauge]:
    """Makes gauges. `over`: what is exported of the values of all living workers."""

    def gauge(name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, multiprocess_mode=over, registry=REGISTRY)

    return gauge


summed, least, most = gauge_over("livesum"), gauge_over("livemin"), gauge_over("livemax")
latest = gauge_over("livemostrecent")


class Part:
    """What one of several in this process adds to a gauge."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._value = gauge, 0.0

    def set(self, value: float) -> None:
        if value != self._value:
            self._gauge.inc(value - self._value)
            self._value = value


def count(*numbers: tuple[Counter, float]) -> None:
    """Adds to counters. Most of a wave's numbers are 0, and the library's call is the slow part."""
    for counter, number in numbers:
        if number:
            counter.inc(number)

"""The parts of prometheus_client that are none of its interface, and that our values replace."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client import values as library

from service.observe import values
from service.observe.exposition import exposition

CHANGED = "prometheus_client has changed, and service/observe/values.py must follow"


def test_metrics_are_made_of_our_values() -> None:
    assert library.ValueClass is values.Value, f"values.ValueClass is another: {CHANGED}"
    counter = Counter("counted", "Counted", registry=CollectorRegistry())
    own = getattr(counter, "_value", None)
    assert isinstance(own, values.Value), f"metrics are not made of values.ValueClass: {CHANGED}"


def test_values_are_written_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(values.MULTIPROC_DIR, str(tmp_path))
    make = getattr(library, "MultiProcessValue", None)
    assert make is not None, f"values.MultiProcessValue is gone: {CHANGED}"
    kind = make(lambda: "7")
    value = kind("counter", "counted", "counted_total", (), (), "Counted")
    value.set(3.0, 0.0)
    assert value.get() == 3.0
    assert (tmp_path / "counter_7.db").exists(), f"files have other names: {CHANGED}"
    assert hasattr(kind, "close_all_files"), f"close_all_files is gone: {CHANGED}"
    kind.close_all_files()


def test_many_observations_at_once_are_as_many_one_by_one() -> None:
    shown = []
    for at_once in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("took_seconds", "Took", buckets=(0.5, 1.0), registry=registry)
        if at_once:
            assert hasattr(histogram, "_buckets"), f"Histogram._buckets is gone: {CHANGED}"
            values.observe_in_no_time(histogram, 3)
        else:
            for _ in range(3):
                histogram.observe(0.0)
        shown.append(generate_latest(registry))
    assert shown[0] == shown[1], CHANGED


def test_a_worker_that_is_just_beginning_spoils_no_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(values.MULTIPROC_DIR, str(tmp_path))
    begun = tmp_path / "counter_7.db"
    begun.touch()
    maker = threading.Timer(0.1, lambda: os.truncate(begun, 1 << 20))
    maker.start()
    try:
        text, _ = exposition()
    finally:
        maker.join()
    assert text == b""

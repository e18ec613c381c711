"""The bulk benchmark on a small log, and its log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from benchmarks import bulk
from tests.benchmarks.test_load import artefact, run
from training.interactions import read_log

__all__ = ["artefact"]


def test_the_log_is_of_the_length_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = bulk.write_log(path, ["a", "b"], users=2000, mean_length=5)
    assert 4.6 < len(rows) / 2000 < 5.4
    assert rows["timestamp"].is_sorted()
    read = read_log(path).frame.rename({"time_ms": "timestamp"})
    assert read.sort(pl.all()).equals(rows.sort(pl.all()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bulk(artefact: Path, tmp_path: Path) -> None:
    report = tmp_path / "bulk.json"
    run(bulk.main, str(artefact), "--users", "50", "--events", "4", "--seconds", "0.3",
        "--in-flight", "4", "--fsync", "everysec", "--json", str(report))  # fmt: skip
    found = json.loads(report.read_text())
    assert [(one["in_flight"], one["failed"]) for one in found["posting"]] == [(1, 0), (4, 0)]
    assert all(one["events_s"] > 0 for one in found["posting"])
    assert [one["name"] for one in found["commands"]] == [
        "import-log, 50,000 rows at once", "import-log", "warm", "export-log",
        "export-log --since, all the same",
    ]  # fmt: skip
    for one in found["commands"]:
        assert one["events_s"] * one["seconds"] == pytest.approx(found["asked"]["events"])
        assert 50 < one["peak_mib"] < 2000

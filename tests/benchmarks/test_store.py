"""The benchmark of the store's settings, on real stores."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.store import NEVER, Setting, main, measure
from model import ModelConfig, TiM4Rec


@pytest.mark.slow
def test_each_setting_does_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that is late is not written, and a busy machine makes some late.
    monkeypatch.setattr("service.store.snapshot_store._LANDS_WITHIN_MS", 60_000)
    command = typer.Typer()
    command.command()(main)
    report = tmp_path / "store.json"
    result = CliRunner().invoke(command, ["--users", "24", "--events", "50", "--json", str(report)])
    assert result.exit_code == 0, result.output
    rows: dict[tuple[str, Any], dict[str, float]] = {}
    found = json.loads(report.read_text())["rows"]
    for row in found:
        changed = [(k, v) for k, v in row["setting"].items() if v != found[0]["setting"][k]]
        rows[changed[0] if changed else ("", "")] = row
    plain, often, never = rows["", ""], rows["snapshot_every", 16], rows["snapshot_every", NEVER]
    assert often["received"] > plain["received"] > never["received"]
    assert often["replayed"] < plain["replayed"] < never["replayed"]
    assert 4 < often["replayed"] < 12  # half an interval
    half = rows["snapshot_precision", "float16"]
    # The store's memory is taken in sizes that are up to a quarter apart.
    for cost, tolerance in (("memory", 0.2), ("received", 0.1), ("miss", 0.1)):
        share = (half[cost] - never[cost]) / (plain[cost] - never[cost])
        assert share == pytest.approx(0.5, abs=tolerance), cost
    assert {rows["fsync", kind]["file"] for kind in ("everysec", "no")} == {plain["file"]}
    assert all(row["rate"] > 0 for row in found)


@pytest.mark.slow
def test_a_limit_saves_memory() -> None:
    layout = TiM4Rec(ModelConfig(n_items=1)).state_layout
    all_of_it, limited = (
        asyncio.run(measure(Setting(NEVER, fsync="no", history_limit=n), layout, 100, 60, False))
        for n in (0, 10)
    )
    assert limited.memory < 0.5 * all_of_it.memory
    assert limited.replayed < 10 < all_of_it.replayed

"""The benchmark of late events, on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks.late_events import main


def test_what_moves_more_takes_longer(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(main)
    report = tmp_path / "late.json"
    arguments = ["1", "300", "--rounds", "2", "--json", str(report)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    costs = json.loads(report.read_text())
    assert [(c["policy"], c["moved"]) for c in costs] == [
        ("clamp", 1), ("replay", 0), ("replay", 1), ("replay", 300)
    ]  # fmt: skip
    assert costs[2]["store_us"] * 2 < costs[3]["store_us"]

"""The comparison of ways to search a whole catalogue, on a small one."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks import exact_search


def test_every_way_is_measured(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(exact_search.main)
    written = tmp_path / "figures.json"
    sizes = ["--items", "300", "--items", "2000", "--queries", "1", "--queries", "3"]
    result = CliRunner().invoke(app, [*sizes, "--repeats", "2", "--json", str(written)])
    assert result.exit_code == 0, result.output
    rows = json.loads(written.read_text())
    assert [(row["items"], row["queries"]) for row in rows] == [
        (300, 1), (300, 3), (2000, 1), (2000, 3)
    ]  # fmt: skip
    assert all(len(row) == 7 and min(row.values()) > 0 for row in rows)

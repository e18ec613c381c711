"""The measurement of the catalogue's cost: the command on a small one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import choices as module  # noqa: E402


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module.main)
    written = tmp_path / "figures.json"
    arguments = ["--items", "300", "--repeats", "1", "--json", str(written)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    (figures,) = json.loads(written.read_text()).values()
    assert {"load, ms", "search, none found, ms", "wave: plain, ms"} <= figures.keys()
    assert sum(name.startswith("wave: ") for name in figures) == 6
    assert all(taken >= 0 for taken in figures.values())
    for row in figures:
        assert row in result.stdout

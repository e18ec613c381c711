"""The simulation of exploration: the command, on few answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import exploration as module  # noqa: E402


def test_only_exploration_finds_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARES", (0.0, 0.1))
    monkeypatch.setattr(module, "SEEDS", (1,))
    app = typer.Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, ["--answers", "4000", "--json", str(tmp_path / "found")])
    assert result.exit_code == 0, result.output
    without, explored = json.loads((tmp_path / "found").read_text())
    assert (without["share"], explored["share"]) == (0, 0.1)
    assert (without["found"], without["after"]) == (0, None)
    assert explored["found"] > 0
    assert explored["after"] > 0
    assert 0 < explored["takes"] < without["takes"]  # at first it costs


def test_the_same_seed_is_the_same_world() -> None:
    assert module.run(0.1, 3, 400) == module.run(0.1, 3, 400) != module.run(0.1, 4, 400)

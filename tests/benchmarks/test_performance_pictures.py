"""The pictures of docs/performance.md are drawn from what the benchmarks wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import performance_pictures as module  # noqa: E402


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(module.main)
    return app


def test_pictures_of_written_figures(command: typer.Typer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra docs")
    rates = [
        {"fsync": fsync, "asked": rate, "p50_ms": 2.0, "p90_ms": 4.0, "p99_ms": rate / 10}
        for fsync, rate in (("always", 100), ("everysec", 100), ("everysec", 300))
    ]
    costs = [
        {"history": length, "get_ms": 5.0, "post_ms": 3.0, "step_ms": 1.0, "window_ms": length}
        for length in (10, 1000)
    ]
    (tmp_path / "load.json").write_text(json.dumps({"at_rates": rates}))
    (tmp_path / "history.json").write_text(json.dumps({"rows": costs}))
    arguments = ["--out", "pictures", "--load", "load.json", "--history", "history.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
        latency, cost = read(tmp_path)
        assert CliRunner().invoke(command, arguments).exit_code == 0
    assert read(tmp_path) == (latency, cost), "the same figures give the same file"
    assert "fsync everysec" in latency, "the policy with most rates"
    assert "p99" in latency
    assert "the whole history recomputed" in cost


def read(folder: Path) -> tuple[str, str]:
    names = ("latency-against-rate", "cost-against-history")
    one, other = ((folder / "pictures" / f"{name}.svg").read_text() for name in names)
    return one, other


def test_files_without_figures_are_named(command: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    refused = CliRunner().invoke(command, ["--out", str(tmp_path), "--load", f"{tmp_path}/x.json"])
    assert refused.exit_code == 1
    assert "x.json: no figures for latency-against-rate" in refused.output
    nothing = CliRunner().invoke(command, ["--out", str(tmp_path)])
    assert nothing.exit_code == 1
    assert "give --load FILE, --history FILE, or both" in nothing.output

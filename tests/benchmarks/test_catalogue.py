"""The benchmark of ways to search large catalogues, on a small one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import catalogue
from tests.service.processes import BASE_MS, make_artefact


def test_ways_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MEASURE_S", 0.05)
    ids = [f"item{n}" for n in range(500)]
    make_artefact(tmp_path / "model", ids)
    draw = np.random.default_rng(0)
    lines = [
        f"u{user},{draw.choice(ids)},{BASE_MS // 1000 + 60 * place}"
        for user in range(80)
        for place in range(6)
    ]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    command = typer.Typer()
    command.command()(catalogue.main)
    report = tmp_path / "catalogue.json"
    given = [str(tmp_path / "model"), str(log), "--items", "4000", "--queries", "64"]
    given += ["--way", "exact", "--way", "index", "--json", str(report)]
    for _ in range(2):
        result = CliRunner().invoke(command, given)
        assert result.exit_code == 0, result.output
    rows = json.loads(report.read_text())["rows"]
    assert [(row["way"], row["items"]) for row in rows] == [("exact", 4000), ("index", 4000)]
    exact, index = rows
    assert exact["recall"] == 1
    assert exact["exact"] == 1
    assert index["recall"] > 0.9
    assert index["exact"] < 0.1
    assert 0 < index["bytes"] < 4000 * 16 * 4
    refused = CliRunner().invoke(command, [*given, "--way", "guess"])
    assert refused.exit_code == 1
    assert "--way guess: give one of exact, index" in refused.output


def test_what_is_grown_is_like_what_it_grows_from() -> None:
    draw = np.random.default_rng(0)
    own = draw.standard_normal((300, 16)).astype(np.float32) * draw.uniform(0.5, 3, (300, 1))
    own = own.astype(np.float32)
    grown = catalogue.grow(own, 3000)
    assert (grown[:300] == own).all()
    lengths, new = np.linalg.norm(own, axis=1), np.linalg.norm(grown[300:], axis=1)
    np.testing.assert_allclose(
        np.percentile(new, [10, 50, 90]), np.percentile(lengths, [10, 50, 90]), rtol=0.25
    )
    unit = grown / np.linalg.norm(grown, axis=1, keepdims=True)
    nearest = (unit[300:] @ unit[:300].T).max(1)
    others = (unit[:300] @ unit[:300].T - 2 * np.eye(300)).max(1)
    assert np.median(nearest) > np.median(others)
    sample = catalogue.grow(own, 100)
    assert len(np.unique(sample, axis=0)) == 100

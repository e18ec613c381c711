"""The measurement of new items' vectors: the command on a small model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import typer
from typer.testing import CliRunner

from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.items import Items

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import cold_start as module  # noqa: E402


def test_vectors_of_new_items_do_not_look_at_their_own() -> None:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((21, 4)).astype(np.float32)
    one_hot = (draw.random((21, 3)) < 0.5).astype(np.float32)
    one_hot[:, 0] = 1
    new = np.array([3, 7])
    changed = table.copy()
    changed[new] = 99
    before, after = (module.ways(one, one_hot, new) for one in (table, changed))
    for way, make in before.items():
        same = np.allclose(make(new), after[way](new))
        assert same is (way != "trained"), way
    known = np.setdiff1d(np.arange(1, 21), new)
    only = known[one_hot[known, 0] > 0]
    one_hot[3] = [1, 0, 0]
    np.testing.assert_allclose(before["means"](np.array([3]))[0], table[only].mean(0), atol=1e-5)


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=12, d_model=8, head_dim=4, d_state=4)).eval()
    categories = [[f"c{n % 3}"] for n in range(12)]
    ids = [f"i{n}" for n in range(12)]
    items = Items(ids, np.arange(12, dtype=np.int64), None, categories)
    save_artefact(tmp_path / "m", model, items, {}, "")
    rows = [f"u{user},i{(user + step) % 12},{step}" for user in range(12) for step in range(5)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    app = typer.Typer()
    app.command()(module.main)
    written = tmp_path / "figures.json"
    arguments = [str(tmp_path / "m"), str(tmp_path / "log.csv"), "--json", str(written)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(written.read_text())
    assert figures["targets"] == 24  # each item is new once
    for way in ("average", "means", "as long", "ridge 10", "trained"):
        assert 0 <= figures["ways"][way]["new"]["HR@10"] <= 1
        assert figures["ways"][way]["all"]["HR@50"] == 1

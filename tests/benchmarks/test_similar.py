"""The measurement of similarities: ranks by hand, and the command on a small model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from model import ModelConfig, TiM4Rec
from model.artefact import load_artefact, save_artefact
from model.items import Items

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import similar as module  # noqa: E402


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=9, d_model=8, head_dim=4, d_state=4)).eval()
    items = Items([f"i{i}" for i in range(1, 10)], np.arange(9, dtype=np.int64))
    save_artefact(tmp_path / "m", model, items, {}, "")
    return tmp_path / "m"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = ["a,i1,1", "a,i2,2", "a,i3,3", "b,i5,1", "b,i5,2", "c,i1,1", "c,x,2", "d,i9,1"]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join([*rows, "e,i9,5", "e,i8,6"]) + "\n")
    return path


def test_the_last_two_items_of_each_user(artefact: Path, log: Path) -> None:
    first, second = module.held_out(load_artefact(artefact), log)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(2, 3), (9, 8)]


def test_ranks_leave_the_item_itself_out_and_count_ties_against() -> None:
    table = torch.tensor([9.0, 5, 5, 1, 7])  # the padding's first
    found = module.ranks(
        lambda items: table.repeat(len(items), 1), torch.tensor([4, 4, 1]), torch.tensor([2, 3, 4])
    )
    assert found.tolist() == [2, 3, 1]


def test_the_command_writes_its_figures(artefact: Path, log: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module.main)
    written = tmp_path / "figures.json"
    result = CliRunner().invoke(app, [str(artefact), str(log), "--json", str(written)])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(written.read_text())
    assert figures["pairs"] == 2
    assert set(figures["measures"]) == {"cosine", "product", "next", "popular"}
    # i3's rank after i2 is 7, i8's after i9 is 1, by their popularity.
    assert figures["measures"]["popular"]["MRR@10"] == pytest.approx((1 / 7 + 1) / 2)

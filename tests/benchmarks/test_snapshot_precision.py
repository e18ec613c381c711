"""The measurement of float16 snapshots runs on a small model, and sees what rounding does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from model.artefact import load_artefact, save_artefact
from model.items import Items

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import snapshot_precision as module  # noqa: E402

N_ITEMS = 30


def make(folder: Path, **options: str) -> TiM4Rec:
    torch.manual_seed(0)
    config = ModelConfig(n_items=N_ITEMS, d_model=8, head_dim=4, d_state=4, max_len=6, **options)
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    items = Items([f"i{i}" for i in range(1, N_ITEMS + 1)], np.ones(N_ITEMS, dtype=np.int64))
    save_artefact(folder, model, items, {}, "")
    return model


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Twenty users of 25 interactions, one in 10 with an item that the model does not know."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(20):
        times = 1_700_000_000 + draw.integers(1, 10**5, 25).cumsum()
        rows += [f"u{user},i{draw.integers(1, 34)},{time}" for time in times]
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(module.main)
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_the_command_writes_its_figures(tmp_path: Path, log: Path) -> None:
    model = make(tmp_path / "m")
    written = tmp_path / "figures.json"
    options = ["--json", written, "--users", "3", "--steps", "100", "--every", "16"]
    code, stdout, stderr = run(tmp_path / "m", log, *options)
    assert code == 0, stderr
    assert "overlap@10" in stdout
    found = json.loads(written.read_text())
    assert found["model"] == load_artefact(tmp_path / "m").identity
    assert found["lists"] == 3 * (100 - 15)
    assert 0.9 < found["overlap"] <= 1
    assert found["worst_overlap"] <= found["overlap"]
    assert 0.5 < found["same_order"] <= 1
    assert 0 < found["largest_difference"] < 0.05 * found["typical_spread"]
    assert found["refused"] == 0
    assert set(found["overlap_after"]) == {"0", "8"}
    state = model.new_state(1)
    for precision in ("float32", "float16"):
        packed = model.state_layout.pack(state, precision=precision)[0]
        assert found[f"bytes_{precision}"] == len(packed)


def test_too_short_a_log_is_said_in_one_line(tmp_path: Path, log: Path) -> None:
    make(tmp_path / "m")
    code, _, stderr = run(tmp_path / "m", log)
    assert code == 1
    assert stderr.startswith(f"error: {log}: too few interactions")
    assert stderr.count("\n") == 1


def test_streams_are_long_and_never_go_back(tmp_path: Path, log: Path) -> None:
    make(tmp_path / "m")
    items, times = module.streams(load_artefact(tmp_path / "m"), log, users=3, steps=60)
    assert items.shape == times.shape == (3, 61)
    assert items.min() >= 1
    assert items.max() <= N_ITEMS
    assert times.diff(dim=1).min() >= 0
    assert (times != UNKNOWN_TIME).all()
    assert (times.diff(dim=1) == module.DAY_MS).sum() >= 3 * 2  # where a history follows another
    assert len({tuple(row) for row in items.tolist()}) == 3


def test_rounding_more_often_differs_more_and_overflow_is_counted(
    tmp_path: Path, log: Path
) -> None:
    model = make(tmp_path / "m")
    items, times = module.streams(load_artefact(tmp_path / "m"), log, users=2, steps=60)
    with torch.inference_mode():
        seldom = module.compare(model, items, times, every=40, k=10)
        often = module.compare(model, items, times, every=1, k=10)
    assert often.lists == 2 * 60
    assert seldom.lists == 2 * 21
    assert often.largest_difference > seldom.largest_difference > 0
    with torch.no_grad():
        for block in model.blocks:
            block.ssd.in_proj.weight.mul_(1e5)
    with torch.inference_mode():
        large = module.compare(model, items, times, every=8, k=10)
    assert large.refused == 2 * (60 // 8)
    assert large.largest_difference == 0


def test_what_can_not_be_measured(tmp_path: Path, log: Path) -> None:
    items = torch.ones(1, 5, dtype=torch.long)
    with pytest.raises(module.CommandError, match="window"):
        module.compare(make(tmp_path / "s", time="sequence"), items, items, every=2, k=10)
    with pytest.raises(module.CommandError, match="--every 4"):
        module.compare(make(tmp_path / "m"), items, items, every=4, k=10)

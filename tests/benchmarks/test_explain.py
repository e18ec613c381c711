"""The measurement of explanations: its figures by hand, and the command on a small model."""

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
from benchmarks import explain as module  # noqa: E402


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=20, d_model=8, head_dim=4, d_state=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    items = Items([f"i{i}" for i in range(1, 21)], np.ones(20, dtype=np.int64))
    save_artefact(tmp_path / "m", model, items, {}, "")
    return tmp_path / "m"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five users of 15 interactions, one of 3."""
    draw = np.random.default_rng(0)
    rows = [f"u{u},i{draw.integers(1, 22)},{1000 * n}" for u in range(5) for n in range(15)]
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join([*rows, "v,i1,1", "v,i2,2"]) + "\n")
    return path


def test_rank_correlation() -> None:
    one = torch.tensor([[1.0, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]])
    other = torch.tensor([[5.0, 9, 2], [6, 7, 1], [70, 5, 4], [800, 3, 3]])
    assert module.spearman(one, other).tolist() == pytest.approx([1, -1, 0.6])


def test_a_gradient_times_input_is_the_slope(artefact: Path) -> None:
    """Against differences of the score when an input grows a little, in float64."""
    model = load_artefact(artefact).model.double().requires_grad_(False)
    items, times = torch.tensor([3, 9, 4, 1]), torch.tensor([1000, 5000, 60_000, 90_000])
    best, at = torch.tensor([7, 2]), 200_000
    found = module.gradient(model, (items, times, at), best, 3)

    def scores(scale: torch.Tensor) -> torch.Tensor:
        handle = model.in_norm.register_forward_pre_hook(lambda _, x: (x[0] * scale[:, None],))
        try:
            query = model(items[None], times[None], torch.full((1, 4), at))[0, -1]
        finally:
            handle.remove()
        return model.item_embedding.weight[best] @ query

    for place in range(3):
        little = torch.zeros(4, dtype=torch.float64)
        little[place + 1] = 1e-5
        slope = (scores(1 + little) - scores(1 - little)) / 2e-5
        torch.testing.assert_close(found[place], slope, atol=1e-6, rtol=1e-4)


def test_the_command_writes_its_figures(artefact: Path, log: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module.main)
    written = tmp_path / "figures.json"
    options = ["--json", str(written), "--events", "6", "--k", "3"]
    result = CliRunner().invoke(app, [str(artefact), str(log), *options])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(written.read_text())
    assert figures["users"] == 5
    ways = figures["ways"]
    assert set(ways) == {"left out", "gradient", "cosine", "newest"}
    for name in ("spearman", "same_first", "shared_of_three"):
        assert ways["left out"][name] == pytest.approx(1)
    assert all(-1 <= way["spearman"] <= 1 and way["ms"] > 0 for way in ways.values())

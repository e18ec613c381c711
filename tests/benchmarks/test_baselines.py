"""The published models in our own code: against naive loops, and trained like our own."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from model import UNKNOWN_TIME
from model.config import ConfigError
from training.dataset import build_dataset
from training.evaluation import rank_targets
from training.interactions import read_log
from training.loss import softmax_loss

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import quality  # noqa: E402
from benchmarks.baselines import (  # noqa: E402
    LRURecConfig,
    Mamba4RecConfig,
    SASRecConfig,
    TiSASRecConfig,
    lrurec,
    mamba4rec,
    tisasrec,
)
from benchmarks.baselines.baseline import Baseline, BaselineConfig  # noqa: E402

ROWS = {"lrurec": "LRURec", "mamba4rec": "Mamba4Rec", "tisasrec": "TiSASRec"}
CONFIGS = (LRURecConfig, Mamba4RecConfig, SASRecConfig, TiSASRecConfig)


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def built(config: BaselineConfig) -> Baseline:
    """The model with weights large enough that what it reads shows."""
    model = config.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("A_log"):
                parameter.normal_(std=0.3)
    return model


def windows(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Items of 1..30 and times, days to months apart."""
    items = torch.randint(1, 31, (rows, length))
    return items, torch.randint(1, 60, (rows, length)).cumsum(1) * 86_400_000


@pytest.mark.parametrize("config", CONFIGS)
def test_a_later_interaction_changes_no_earlier_output(config: type[BaselineConfig]) -> None:
    model = built(config(n_items=30, d_model=8, max_len=13))
    items, times = windows(3, 13)
    before = model(items, times)
    items[:, 9] = items[:, 9] % 30 + 1
    times[:, 9:] += torch.tensor([1, 86_400_000, 10**10])[:, None]
    times[:, 12] += 1  # the smallest gap of all
    after = model(items, times)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=0)
    assert (before[:, 9:] != after[:, 9:]).any(2).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_query_is_the_output_after_the_last_of_its_window(config: type[BaselineConfig]) -> None:
    model = built(config(n_items=30, d_model=8, max_len=5))
    items, times = windows(4, 9)
    lengths = torch.tensor([9, 4, 5, 0])
    padded = torch.arange(9) >= lengths[:, None]
    state = model.prefill(
        items.masked_fill(padded, 0),
        times.masked_fill(padded, UNKNOWN_TIME),
        lengths,
        model.new_state(4),
    )
    found = model.query(state)
    for row, span in enumerate((slice(4, 9), slice(0, 4), slice(0, 5))):
        alone = model(items[row : row + 1, span], times[row : row + 1, span])[0, -1]
        torch.testing.assert_close(found[row], alone)
    assert not found[3].any()


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_lru_in_parallel_is_its_recurrence(length: int) -> None:
    unit = lrurec.LinearRecurrentUnit(6, 0.0).double()
    decay, gamma = unit.coefficients()
    assert ((decay.abs() > 0.8) & (decay.abs() < 0.99)).all()
    torch.testing.assert_close(gamma**2 + decay.abs() ** 2, torch.ones(12))
    x = torch.randn(3, length, 6)
    real, imaginary = (x @ unit.project_in.weight.T + unit.project_in.bias).chunk(2, -1)
    inputs = (real + 1j * imaginary) * gamma
    h, steps = torch.zeros(3, 12, dtype=torch.complex128), []
    for t in range(length):
        h = decay * h + inputs[:, t]
        steps.append(unit.finish(x[:, t], h))
    torch.testing.assert_close(unit(x), torch.stack(steps, 1))


def test_lrurec_scores_have_a_bias_an_item() -> None:
    model = built(LRURecConfig(n_items=30, d_model=8))
    items, times = windows(2, 5)
    query = model(items, times)[:, -1]
    table, bias = model.item_embedding.weight[:, :-1], model.item_embedding.weight[:, -1]
    scores = query[:, :-1] @ table.T + bias
    torch.testing.assert_close(model.scores(query)[:, 1:], scores[:, 1:])
    targets = torch.tensor([3, 30])
    expected = torch.nn.functional.cross_entropy(scores[:, 1:], targets - 1)
    torch.testing.assert_close(softmax_loss(model, query, targets), expected)


def test_selective_scan_is_the_naive_loop() -> None:
    rows, length, inner, n = 2, 5, 3, 4
    x, dt = torch.randn(rows, length, inner), torch.rand(rows, length, inner)
    A, B, C = -torch.rand(inner, n), torch.randn(rows, length, n), torch.randn(rows, length, n)
    expected = np.zeros((rows, length, inner))
    for b in range(rows):
        for e in range(inner):
            for s in range(n):
                h = 0.0
                for t in range(length):
                    step = float(dt[b, t, e])
                    h = np.exp(step * float(A[e, s])) * h + step * float(B[b, t, s] * x[b, t, e])
                    expected[b, t, e] += float(C[b, t, s]) * h
    found = mamba4rec.selective_scan(x, dt, A, B, C)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_intervals_are_those_of_a_naive_loop() -> None:
    times = torch.tensor([[10, 10, 70, 90, 400, 407, 9000], [5, 5, 5, 5, 5, 5, 5]])
    found = tisasrec.intervals(times, 16)
    for row, stamps in enumerate(times.tolist()):
        for i in range(len(stamps)):
            gaps = [b - a for a, b in pairwise(stamps[: i + 1]) if b > a]
            for j in range(i + 1):
                expected = min((stamps[i] - stamps[j]) // min(gaps), 16) if gaps else 0
                assert found[row, i, j] == expected
    assert found[0, 3, 2] == 1  # 20 of at least 20
    assert found[0, 3, 0] == 4
    assert found[0, 5, 3] == 16  # 317 of at least 7


def test_attention_by_interval_is_attention_by_pair() -> None:
    attention = tisasrec.TimeAwareAttention(6, 0.0)
    x, positions, apart = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.randn(2, 9, 6)
    r = torch.randint(0, 9, (2, 5, 5))
    found = attention(x, positions.unbind(0), apart.unbind(0), r)
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    for b in range(2):
        for i in range(5):
            earlier = range(i + 1)
            keys = torch.stack([k[b, j] + positions[0, j] + apart[0, r[b, i, j]] for j in earlier])
            values = torch.stack(
                [v[b, j] + positions[1, j] + apart[1, r[b, i, j]] for j in earlier]
            )
            weights = (keys @ q[b, i] / 6**0.5).softmax(0)
            torch.testing.assert_close(found[b, i], weights @ values)


def write_log(folder: Path, *, missing: bool = False) -> None:
    """Users walk a ring of 20 items at a pace of their own."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(40):
        stride, item, time = 1 + user % 3, int(draw.integers(20)), 1_000_000_000
        for place in range(14):
            item, time = (item + stride) % 20, time + 3600 * int(draw.integers(1, 5))
            rows.append(f"u{user},i{item},{'' if missing and not place else time}")
    folder.mkdir(parents=True)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_trained_ranked_and_resumed_like_ours(row: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    write_log(tmp_path / "data" / "ring")
    dataset = build_dataset(read_log(tmp_path / "data" / "ring" / "interactions.csv"))
    preset = quality.presets("ring")[row].with_options(["model.dropout=0.1", "model.max_len=8"])
    options = {"targets": 64, "lr": 0.01, "threads": 1}
    console = Console(record=True, width=200, file=io.StringIO())

    def measured(epochs: int) -> dict[str, Any]:
        folder = tmp_path / "runs" / row
        return quality.measure(
            dataset, "ring", row, preset, 0, folder, options | {"max_epochs": epochs}, console
        )

    assert measured(2)["epochs"] == 2
    result = measured(12)
    losses = [
        float(words[3])
        for words in map(str.split, console.export_text().splitlines())
        if words[0] == "epoch"
    ]
    assert len(losses) == 12
    assert losses[11] < losses[1] < losses[0]
    lines = {(one["seen"], one["history"]): one for one in result["rows"]}
    assert lines["kept", "whole"]["HR@10"] > 0.9
    assert lines["kept", "whole"]["NDCG@10"] == lines["kept", "last 50"]["NDCG@10"]
    assert f"our {ROWS[row]}" in result["title"]
    assert result["model"] == preset.architecture(dataset).to_dict()


def test_what_a_baseline_can_not_do_is_said_in_one_line(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    write_log(tmp_path / "ring")
    write_log(tmp_path / "gaps", missing=True)

    def run(name: str, *options: str) -> None:
        folders = ("--data", str(tmp_path), "--runs", str(tmp_path / "runs"))
        quality.main(["--dataset", name, *folders, "--threads", "1", "--epochs", "1", *options])

    with pytest.raises(SystemExit, match=r"row tisasrec: needs the time of every interaction"):
        run("gaps", "--rows", "tisasrec")
    for row, option, message in (
        ("lrurec", "training.context=4", "training.context must be 0"),
        ("tisasrec", "training.time_masking=0.5", "training.time_masking must be 0"),
        ("mamba4rec", "model.d_state=0", "d_state must be at least 1, not 0"),
        ("tisasrec", "model.dropout=1", "dropout must be in 0..1, not 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("ring", "--rows", row, "--name", "x", "--set", option, "training.max_len=6")


def test_a_baseline_is_not_stepped(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    write_log(tmp_path / "ring")
    dataset = build_dataset(read_log(tmp_path / "ring" / "interactions.csv"))
    model = LRURecConfig.of(dataset, d_model=8).build()
    with pytest.raises(NotImplementedError, match="LRURec is evaluated in parallel mode only"):
        rank_targets(model, dataset.histories, dataset.test, mode="recurrent", top=0)
    with pytest.raises(ConfigError, match=r"training\.context must be 0"):
        model(*windows(1, 3), None, model.new_state(1))

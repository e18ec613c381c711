"""Curves of training, ours and RecBole's; RECBOLE_PYTHON names the Python of its environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed
from benchmarks import quality, training_speed
from benchmarks.training_speed import Curve, comparisons
from training.config import TrainingConfig
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.recipe import model_config, training_config
from training.trainer import train

USERS, LENGTH, LONG = 40, 15, 70


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Users walk a ring of 40 items, one of them for longer; the time says which item follows."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        far = draw.integers(0, 2, LENGTH if user else LONG)
        items = (draw.integers(40) + np.where(far, 20, 1).cumsum()) % 40
        times = 1_000_000_000 + np.where(far, 1_000_000, 10).cumsum()
        rows += [f"{user},{item},{time}" for item, time in zip(items, times, strict=True)]
    (tmp_path / "data" / "ring").mkdir(parents=True)
    (tmp_path / "data" / "ring" / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n"
    )
    return tmp_path / "data"


def run(data: Path, *arguments: str) -> dict[str, Any]:
    path = data / "out.json"
    training_speed.main(["--dataset", "ring", "--data", str(data), "--json", str(path), *arguments])
    report: dict[str, Any] = json.loads(path.read_text())
    for curve in report["curves"]:
        epochs, seconds = curve["epochs"], curve["seconds"]
        assert len(curve["training"]) == len(curve["validation"]) == len(curve["ndcg"]) == epochs
        assert seconds == pytest.approx(np.cumsum(curve["training"]))
        # The epoch that passes the bound is the last, if nothing stopped the curve before.
        waited = epochs - 1 - int(np.argmax(curve["ndcg"]))
        stopped = waited == TrainingConfig().patience if "ours" in curve["title"] else waited == 11
        assert stopped or seconds[-1] >= 60 * report["minutes"]
        assert epochs == 1 or seconds[-2] < 60 * report["minutes"]
        assert curve["best_ndcg"] == max(curve["ndcg"])
        assert curve["targets"] == (USERS - 1) * (LENGTH - 3) + LONG - 3
        assert curve["targets_per_second"] == pytest.approx(curve["targets"] * epochs / seconds[-1])
    return report


@pytest.mark.slow
def test_ours_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RECBOLE_PYTHON", raising=False)
    fast = {"lr": 0.02, "targets": 64, "warmup": 0}
    monkeypatch.setattr(
        training_speed,
        "presets",
        lambda _: {"causal": quality.Preset("fast", {"dropout": 0.1}, fast)},
    )
    unknown, known = run(data, "--minutes", "0.02")["curves"]
    assert unknown["tokens"] == unknown["targets"]
    assert unknown["training"] == known["training"]
    dataset = quality.load("ring", data, "leave-one-out")
    config = training_config(dataset, threads=1, max_epochs=1, **fast)
    first = train(dataset, model_config(dataset, dropout=0.1), config)
    asked = rank_targets(first.model, dataset.histories, dataset.validation)[False]
    assert known["ndcg"][0] == first.best_ndcg
    assert unknown["ndcg"][0] == ranking_metrics(asked.kept)["NDCG@10"]
    assert known["ndcg"] != unknown["ndcg"]
    printed = capsys.readouterr().out
    assert "ours, request time known: epoch 1," in printed
    assert f"{unknown['targets_per_second']:,.0f}" in printed


@pytest.mark.skipif(
    "RECBOLE_PYTHON" not in os.environ, reason="RECBOLE_PYTHON names no Python with RecBole"
)
def test_recbole_in_turn(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(data, "--minutes", "0.02")
    *_, shipped, trimmed = report["curves"]
    each = np.minimum(np.arange(1, LONG - 2), training_speed.POSITIONS)
    assert shipped["tokens"] == (USERS - 1) * sum(range(1, LENGTH - 2)) + each.sum()
    assert trimmed["training_seconds_per_epoch"] < 0.8 * shipped["training_seconds_per_epoch"]
    assert len(report["comparisons"]) == 8
    printed = capsys.readouterr().out
    assert "100% of the best NDCG@10 of RecBole SASRec, shipped" in printed


def test_what_is_compared_is_training_time() -> None:
    def curve(title: str, training: list[float], ndcg: list[float]) -> Curve:
        return Curve(title, 100, 100, "2", training, [1000.0] * len(ndcg), ndcg)

    ours = curve("ours", [1, 2, 3], [0.1, 0.39, 0.3])
    other = curve("other", [10, 10, 10, 10], [0.2, 0.38, 0.4, 0.3])
    whole, most = comparisons([ours], [other])
    assert (whole["ndcg"], whole["other_s"], whole["ours_s"]) == (0.4, 30, None)
    assert (most["ndcg"], most["other_s"], most["ours_s"]) == (pytest.approx(0.38), 20, 3)
    assert other.rates()["seconds_to_best"] == 30
    assert other.rates()["targets_per_second"] == 10


def test_prefixes_are_as_long_as_recbole_takes_them(data: Path) -> None:
    dataset = quality.load("ring", data, "leave-one-out")
    short = (USERS - 1) * sum(range(1, LENGTH - 2))
    assert training_speed.prefix_tokens(dataset) == short + sum(range(1, 51)) + 17 * 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--python", "/nowhere/python"), "--python /nowhere/python: No such file"),
        (("--python", sys.executable), "RecBole's environment ended with status 1"),
        (("--minutes", "0"), "--minutes: must be at least 0.001, not 0"),
        (("--threads", "0"), "--threads: must be at least 1, not 0"),
        (("--json", "/nowhere/out.json"), "--json /nowhere/out.json: no such folder"),
    ],
)
def test_what_can_not_run_is_said_in_one_line(
    data: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        run(data, *arguments)
    assert "\n" not in str(error.value)

"""The quality benchmark on small logs: real trainings, resumed and compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import ModelConfig, TiM4Rec
from training.config import TrainingConfig
from training.evaluation import evaluate_offline
from training.recipe import model_config, training_config
from training.trainer import train

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import quality  # noqa: E402
from benchmarks.ranks import Ranks, View, read_result  # noqa: E402


def write_log(folder: Path, *, users: int = 40, missing: bool = False, seed: int = 0) -> None:
    """Users walk a ring of 30 items, the faster the longer they waited; one has a long history."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        length = 230 if user == 0 else 12
        strides = draw.integers(1, 4, length)
        items = (draw.integers(30) + strides.cumsum()) % 30
        times = 1_000_000_000 + (100**strides).cumsum()
        for place, (item, time) in enumerate(zip(items, times, strict=True)):
            rows.append(f"u{user},i{item},{'' if missing and place < 6 else time}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    """An epoch of one step would change no rank."""
    real = quality.presets

    def presets(dataset: str) -> dict[str, quality.Preset]:
        small = {"targets": 64, "warmup": 1, "lr": 0.02}
        return {
            name: replace(preset, training=small | preset.training)
            for name, preset in real(dataset).items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "presets", presets)
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_log(tmp_path / "data" / "ring")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder beside two rows of two seeds."""
    data = tmp_path_factory.mktemp("measured") / "data"
    write_log(data / "ring")
    run(data, "--rows", "causal", "no-time", "--seeds", "2", "--epochs", "1")
    return data


def run(data: Path, *options: str | Path, name: str = "ring") -> dict[str, Any]:
    report = data.parent / "report.json"
    quality.main(
        [
            *("--dataset", name, "--data", str(data), "--runs", str(data.parent / "runs")),
            *("--threads", "1", "--json", str(report), *map(str, options)),
        ]
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def line(report: dict[str, Any], row: str, **wanted: Any) -> dict[str, Any]:
    default = {"users": "all", "seen": "kept", "history": "whole", "request_time": False}
    found = [
        one
        for one in report["rows"]
        if one["row"] == row and all(one[k] == v for k, v in (default | wanted).items())
    ]
    assert len(found) == 1
    return found[0]


def test_rows_are_those_of_the_evaluation(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured
    report = run(data, "--rows")
    shown = capsys.readouterr().out
    assert "TiM4Rec causal, as served" in shown
    assert "±" in shown
    assert "no published figures" in shown
    dataset = quality.load("ring", data, "leave-one-out")
    folder = data.parent / "runs" / "ring" / "causal"
    options = {"max_epochs": 1, "threads": 1, "seed": 1, "targets": 64, "warmup": 1, "lr": 0.02}
    config = training_config(dataset, **options)
    trained = train(dataset, model_config(dataset), config, folder / "1")
    assert trained.epochs == 1  # nothing was trained again
    expected, _ = evaluate_offline(trained.model, dataset.histories, dataset.test)
    assert len(expected) == 18
    for row in expected:
        found = line(
            report, "causal", seen=row.seen, history=row.history, request_time=row.request_time
        )
        assert found["seeds"] == 2
        for name, value in row.metrics.items():
            figure = found["figures"][name]
            assert figure["each"][1] == pytest.approx(value)
            assert figure["mean"] == pytest.approx(np.mean(figure["each"]))
            assert figure["deviation"] == pytest.approx(np.std(figure["each"], ddof=1))
    long = line(report, "no-time", users="over 200", history="last 200")
    assert long["n_users"] == 1
    ranks = Ranks.load(folder / "0" / "ranks.npz")
    assert ranks.users.tolist() == dataset.user_ids
    first = dataset.test.items[0]
    assert ranks.targets[0] == dataset.item_ids[first - 1]
    assert (ranks.ranks[View()] != ranks.ranks[View(request_time=True)]).any()


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(data: Path) -> None:
    first = run(data, "--rows", "causal", "--epochs", "2", "--patience", "5")
    folder = data.parent / "runs" / "ring" / "causal" / "0"
    trained = (folder / "checkpoint.safetensors").stat().st_mtime_ns
    measured = (folder / "result.json").stat().st_mtime_ns
    assert run(data, "--rows", "causal", "--epochs", "2", "--patience", "5") == first
    assert (folder / "result.json").stat().st_mtime_ns == measured
    (folder / "result.json").unlink()
    assert run(data, "--rows", "causal", "--epochs", "2", "--patience", "5") == first
    assert (folder / "checkpoint.safetensors").stat().st_mtime_ns == trained
    run(data, "--rows", "causal", "--epochs", "3", "--patience", "5")
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3
    assert (folder / "checkpoint.safetensors").stat().st_mtime_ns != trained


def test_other_settings_never_pass_for_an_old_run(data: Path) -> None:
    run(data, "--rows", "no-time", "--epochs", "1")
    folder = data.parent / "runs" / "ring" / "no-time" / "0"
    stored = json.loads((folder / "result.json").read_text())
    del stored["training"]["label_smoothing"]  # as if the option had come later
    (folder / "result.json").write_text(json.dumps(stored))
    run(data, "--rows", "no-time", "--epochs", "1")
    options = ("--rows", "no-time", "--name", "low", "--epochs", "1", "--set")
    report = run(data, *options, "training.lr=0.0001", "--set", "model.d_model=32")
    assert {one["row"] for one in report["rows"]} == {"no-time", "low"}
    assert line(report, "low")["title"].endswith("training.lr=0.0001, model.d_model=32")
    low = data.parent / "runs" / "ring" / "low" / "0"
    assert json.loads((low / "result.json").read_text())["model"]["d_model"] == 32
    with pytest.raises(SystemExit, match=r"low/0: holds a run with other settings or data"):
        run(data, *options, "training.lr=0.0002", "model.d_model=32")
    (low / "result.json").unlink()
    with pytest.raises(SystemExit, match=r"low/0: holds a run with other settings or data"):
        run(data, *options, "training.lr=0.0002", "model.d_model=32")
    write_log(data / "ring", seed=1)
    with pytest.raises(SystemExit, match=r"no-time/0: holds a run with other settings or data"):
        run(data, "--rows", "no-time", "--epochs", "1")
    with pytest.raises(SystemExit, match=r"no-time/0: is a result of other data"):
        run(data, "--rows")


@pytest.mark.slow
def test_seeds_of_other_lengths_are_not_averaged(data: Path) -> None:
    run(data, "--rows", "no-time", "--seeds", "2", "--epochs", "1")
    with pytest.raises(SystemExit, match=r"no-time/1: has other settings than the row's first"):
        run(data, "--rows", "no-time", "--epochs", "2")
    report = run(data, "--rows", "no-time", "--seeds", "2", "--epochs", "2")
    assert line(report, "no-time")["seeds"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "causl"), "no row causl; there are causal, "),
        (("--set", "training.lr=1"), "--set and --name make one new row"),
        (("--rows", "causal", "--name", "x", "--set", "lr=1"), "must be model.NAME=VALUE"),
        (("--rows", "causal", "--name", "x", "--set", "training.el=1"), "row x: .*'el'"),
        (("--rows", "causal", "--name", "x", "--set", "training.lr=-1"), "lr must be above 0"),
        (("--rows", "causal", "--name", "no-time"), "is a row already"),
        (("--rows", "--data", "nowhere"), "nowhere/ring/interactions.csv.gz: No such file"),
    ],
)
def test_bad_options_are_said_in_one_line(
    data: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        run(data, *options)
    assert "\n" not in str(error.value)


def test_missing_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_log(data / "ring", missing=True)
    report = run(data, "--rows", "causal", "no-time", "--epochs", "1")
    hidden = line(report, "causal", history=quality.HIDDEN)
    assert hidden["figures"] != line(report, "causal")["figures"]
    assert quality.HIDDEN not in {r["history"] for r in report["rows"] if r["row"] == "no-time"}
    with pytest.raises(SystemExit, match="row sequence: needs the time of every"):
        run(data, "--rows", "sequence")
    capsys.readouterr()


def test_the_papers_row_has_its_own_window(data: Path) -> None:
    report = run(data, "--rows", "sequence", "--epochs", "1")
    assert (
        line(report, "sequence", history="last 50")["figures"]
        == (line(report, "sequence")["figures"])
    )
    folder = data.parent / "runs" / "ring" / "sequence" / "0"
    result = json.loads((folder / "result.json").read_text())
    assert (result["model"]["dropout"], result["model"]["max_len"]) == (0.4, 50)
    assert (result["training"]["beta2"], result["training"]["weight_decay"]) == (0.999, 0.0)


def test_temporal_split_is_kept_apart(data: Path) -> None:
    report = run(data, "--rows", "no-time", "--epochs", "1", "--split", "temporal")
    assert report["protocol"]["split"] == "temporal"
    assert (data.parent / "runs" / "ring-temporal" / "no-time" / "0" / "ranks.npz").exists()


def test_equal_times_by_item_are_kept_apart(data: Path) -> None:
    rows = [f"u{user},{item},7" for user in range(6) for item in (10, 9, 3, 2, 1)]
    folder = data / "same"
    folder.mkdir()
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    told = quality.load("same", data, "leave-one-out")
    by_item = quality.load("same", data, "leave-one-out", "item")
    assert [told.item_ids[i - 1] for i in told.histories.items[:5]] == ["10", "9", "3", "2", "1"]
    assert [by_item.item_ids[i - 1] for i in by_item.histories.items[:5]] == [
        "1",
        "2",
        "3",
        "9",
        "10",
    ]
    run(data, "--rows", "no-time", "--epochs", "1", "--ties", "item")
    assert (data.parent / "runs" / "ring-ties-item" / "no-time" / "0" / "ranks.npz").exists()


def test_published_figures_are_for_the_published_sizes(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "ring", data / "amazon-beauty")
    assert run(data, "--rows", name="amazon-beauty")["published"] == []
    beauty = ROOT / quality.DATA / "amazon-beauty"
    if not beauty.exists():
        pytest.skip(f"no Amazon Beauty at {beauty}")
    capsys.readouterr()
    report = run(ROOT / quality.DATA, "--rows", "--runs", data, name="amazon-beauty")
    assert len(report["published"]) == len(quality.PUBLISHED["amazon-beauty"])
    assert "0.0854" in capsys.readouterr().out


def test_every_row_can_be_built(data: Path) -> None:
    dataset = quality.load("ring", data, "leave-one-out")
    for name in ("ring", "ml-1m-order"):
        for preset in quality.presets(name).values():
            TrainingConfig(**preset.training)
            architecture = preset.architecture(dataset)
            if isinstance(architecture, ModelConfig):
                TiM4Rec(architecture)
            else:
                architecture.build()


def test_compare_from_the_command_line(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = measured
    runs, written = data.parent / "runs" / "ring", tmp_path / "difference.json"
    a, b = str(runs / "no-time"), str(runs / "causal")
    quality.main(["compare", a, b, "--request-time", "b", "--json", str(written)])
    found = json.loads(written.read_text())
    report = run(data, "--rows")
    mean = line(report, "causal", request_time=True)["figures"]["NDCG@10"]["mean"]
    assert mean != line(report, "causal")["figures"]["NDCG@10"]["mean"]
    assert found["b"] == pytest.approx(mean)
    assert found["low"] < found["difference"] < found["high"]
    assert f"{found['difference']:+.5f}, 95 % interval" in capsys.readouterr().out
    missing = "nothing was measured with seen kept, whole, request time known"
    with pytest.raises(SystemExit, match=missing):
        quality.main(["compare", a, b, "--request-time", "a"])
    with pytest.raises(SystemExit, match=r"no ranks\.npz in it"):
        quality.main(["compare", a, str(data)])
    quality.main(["compare", a, b, "--seen", "masked"])
    printed = capsys.readouterr()
    assert "(seen filtered, whole, request time unknown)" in printed.out
    assert "--seen masked is now --seen filtered" in printed.err


def test_results_of_an_earlier_version_are_read(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured.parent / "runs" / "ring" / "causal" / "0", tmp_path / "0")
    now = read_result(tmp_path / "0")
    file = tmp_path / "0" / "result.json"
    file.write_text(file.read_text().replace('"filtered"', '"masked"'))
    assert read_result(tmp_path / "0") == now
    assert View.of("masked|last 50|told") == View("filtered", "last 50", request_time=True)
    assert View.of("kept|whole|not told") == View()

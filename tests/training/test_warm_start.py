"""A published model goes on, on what has come since."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from model.artefact import METRICS, Artefact, load_artefact
from model.ensemble import members_of
from model.times import iso, parse_time
from tests.training.logs import DAY_MS
from tests.training.test_commands import tim4rec
from tests.training.test_refit import Killed, assert_same, growing_log
from training import warm_start
from training.config import TrainingConfig
from training.dataset import Protocol
from training.interactions import Log
from training.recipe import training_config
from training.refit import every_row, grown_dataset
from training.warm_start import WARM, WarmRun, inherited, share_held_out

SMALL = ["--epochs=1", "--d-model=32", "--d-state=8", "--targets=64", "--threads=1"]
UNTIL = 10**12 + 500 * DAY_MS


def write(log: Log, path: Path) -> Path:
    log.frame.select("user_id", "item_id", timestamp="time_ms").write_csv(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, and an artefact trained on it until a day."""
    folder = tmp_path_factory.mktemp("warm")
    log = growing_log()
    write(log, folder / "log.csv")
    pl.DataFrame({"item_id": ["i3", "i25"], "title": ["Three", "Twenty-five"]}).write_csv(
        folder / "items.csv"
    )
    done = tim4rec(
        "train", folder / "log.csv", "--until", iso(UNTIL), "--out", folder / "parent",
        "--items", folder / "items.csv", *SMALL, "--loss=sampled", "--negatives=9",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def parent(folder: Path) -> Artefact:
    return load_artefact(folder / "parent")


@pytest.fixture(scope="module")
def log() -> Log:
    return growing_log()


def test_rows_after_a_time_are_left_out(folder: Path, parent: Artefact, log: Log) -> None:
    assert parent.metrics["step"] == "scratch"
    assert parent.metrics["parent"] is None
    newest = log.frame.filter(pl.col("time_ms") <= UNTIL)["time_ms"].max()
    assert parent.until_ms == newest
    assert log.frame["time_ms"].max() > UNTIL  # type: ignore[operator]
    card = (folder / "parent" / "README.md").read_text()
    assert f"rows are after {iso(UNTIL)} and left out" in card


def test_a_model_goes_on_with_what_is_new(
    folder: Path, parent: Artefact, log: Log, tmp_path: Path
) -> None:
    done = tim4rec(
        "train", folder / "log.csv", "--from", folder / "parent", "--out", tmp_path / "next",
        "--threads=1", "--replay=0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"model {parent.edition} was trained until " in done.output
    found = load_artefact(tmp_path / "next")
    known = len(parent.items)
    assert found.items.ids[:known] == parent.items.ids
    new = set(found.items.ids[known:])
    assert new
    assert set(found.items.ids) == set(every_row(log, Protocol(2, 2)).item_ids)
    assert replace(found.model.config, n_items=known) == parent.model.config
    metrics = found.metrics
    assert metrics["step"] == "warm"
    assert metrics["parent"] == parent.edition
    assert parse_time(metrics["until"]) == log.frame["time_ms"].max()
    since = parent.until_ms
    assert since is not None
    assert metrics["warm_start"] == {
        "since": iso(since),
        "new_targets": every_row(log, Protocol(2, 2)).n_targets_after(since),
        "replay": 0.5,
        "own_mixture": False,
    }
    assert metrics["training"]["loss"] == "sampled"
    assert metrics["training"]["negatives"] == 9
    assert metrics["training"]["lr"] == WARM["lr"]
    assert metrics["epochs"] == 2
    titles = dict(zip(found.items.ids, found.items.titles or [], strict=True))
    assert titles["i3"] == "Three"
    card = (tmp_path / "next" / "README.md").read_text()
    assert f"It goes on from the model {parent.edition}" in card
    assert not (tmp_path / "next.training").exists()
    evaluated = tim4rec("evaluate", tmp_path / "next", folder / "log.csv", "--users=9")
    assert evaluated.exit_code == 0, evaluated.output
    again = tim4rec(
        "train", folder / "log.csv", "--from", tmp_path / "next", "--out", tmp_path / "third"
    )
    assert again.exit_code == 1
    assert "the log has nothing later to train on" in again.output


def test_with_enough_that_is_new_a_mixture_is_fitted_and_the_rest_trained_on(
    folder: Path, parent: Artefact, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "LEAST_HELD_OUT", 20)
    monkeypatch.setattr("training.mixture.LEAST_EVENTS", 20)
    out = tmp_path / "next"
    done = tim4rec(
        "train", folder / "log.csv", "--from", folder / "parent", "--out", out, "--threads=1",
        "--loss=full", "--dropout=0.1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = load_artefact(out)
    assert found.mixture is not None
    assert found.metrics["warm_start"]["own_mixture"] is True
    assert found.metrics["training"]["loss"] == "full"
    assert found.model.config.dropout == 0.1
    assert found.metrics["protocol"]["split"] == "forward"
    assert found.metrics["refit"]["training"] == WARM
    assert found.metrics["validation"]["rows"]
    assert found.metrics["until"] == iso(int(log.frame["time_ms"].max()))  # type: ignore[arg-type]
    assert found.model.repeat_bias != parent.model.repeat_bias
    assert set(found.items.ids) == set(every_row(log, Protocol(2, 2)).item_ids)
    card = (out / "README.md").read_text()
    for part in ("## Warm start", "## Refit", "## Mixture", "## Validation results"):
        assert part in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--d-model=64"], "--d-model 64: parent has 32, and a warm start keeps the architecture"),
        (["--layers=3"], "--layers 3: parent has 2"),
        (["--ensemble=2"], "--ensemble 2: parent has 1"),
        (["--time=none"], "--time none: parent has causal"),
        (["--no-refit"], "--no-refit can't be given with --from"),
        (["--split=temporal"], "--split can't be given with --from"),
        (["--item-init=random"], "--item-init can't be given with --from"),
        (["--until=2001-09-09"], "--until 2001-09-09: log.csv: nothing is left of a log from 20"),
        (["--until=soon"], "--until must be ISO 8601"),
        ([f"--until={UNTIL}"], "the log has nothing later to train on"),
    ],
)
def test_what_can_not_go_on_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    result = tim4rec("train", "log.csv", "--from=parent", "--out=refused", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "refused").exists()


def test_another_log_is_refused(folder: Path, tmp_path: Path, log: Log) -> None:
    other = log.frame.with_columns(item_id=pl.format("x{}", "item_id"))
    path = write(replace(log, frame=other), tmp_path / "log.csv")
    result = tim4rec("train", path, "--from", folder / "parent", "--out", tmp_path / "next")
    assert result.exit_code == 1
    assert "none of the log's items, " in result.stderr
    alone = tim4rec("train", path, "--replay=0.5", "--out", tmp_path / "next")
    assert "--replay is for --from" in alone.stderr


def test_options_that_say_what_the_parent_has_are_no_contradiction(
    folder: Path, tmp_path: Path
) -> None:
    done = tim4rec(
        "train", folder / "log.csv", "--from", folder / "parent", "--out", tmp_path / "next",
        "--d-model=32", "--layers=2", "--time=causal", "--ensemble=1", "--threads=1", "--epochs=1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


QUIET = Console(file=io.StringIO())


def run_of(
    parent: Artefact, config: TrainingConfig, folder: Path, console: Console = QUIET
) -> WarmRun:
    return WarmRun(
        members_of(parent.model), parent.items.ids, parent.model.repeat_bias,
        parent.until_ms, 0.5, config, WARM, folder, console,
    )  # fmt: skip


class KilledLater(Killed):
    """Ends a run in its second part."""

    def print(self, *objects: Any, **options: Any) -> None:
        if objects[0] == "refit on every row":
            self.second = True
        if getattr(self, "second", False):
            super().print(*objects, **options)


@pytest.mark.parametrize("killed", [Killed, KilledLater])
def test_a_killed_warm_start_ends_as_an_uninterrupted_one(
    parent: Artefact, log: Log, tmp_path: Path, killed: type[Killed]
) -> None:
    known = parent.items.ids
    every = every_row(log, Protocol(2, 2), known)
    dataset = grown_dataset(log, Protocol(2, 2, "forward"), known)
    config = training_config(every, targets=64, threads=1)
    _, whole = run_of(parent, config, tmp_path / "whole").in_two_parts(dataset, every)
    with pytest.raises(KeyboardInterrupt):
        run_of(parent, config, tmp_path / "killed", killed()).in_two_parts(dataset, every)
    _, again = run_of(parent, config, tmp_path / "killed").in_two_parts(dataset, every)
    assert_same(again.model, whole.model)


def test_new_items_are_recommended(parent: Artefact, log: Log, tmp_path: Path) -> None:
    known = parent.items.ids
    every = every_row(log, Protocol(2, 2), known)
    config = training_config(every, targets=64, threads=1)
    recipe = WARM | {"max_epochs": 20, "lr": 5e-3}
    model = replace(run_of(parent, config, tmp_path), recipe=recipe).on(every).model
    found = []
    bounds = every.histories.offsets
    for begin, end in pairwise(bounds):
        items = torch.from_numpy(every.histories.items[begin:end].astype(np.int64))[None]
        times = torch.from_numpy(every.histories.times[begin:end])[None]
        best = model.scores(model(items, times)[0, :-1])[:, 1:].topk(5).indices + 1
        wanted = items[0, 1:, None]
        found.append((best == wanted).any(1)[wanted[:, 0] > len(known)])
    hits = torch.cat(found).float()
    assert len(hits) > 5
    assert hits.mean() > 2 * 5 / every.n_items, "twice as often as by chance"


def test_an_ensemble_goes_on_as_that_ensemble(folder: Path, tmp_path: Path) -> None:
    parent, out = tmp_path / "parent", tmp_path / "next"
    made = tim4rec(
        "train", folder / "log.csv", "--until", iso(UNTIL), "--out", parent, "--ensemble=2", *SMALL
    )
    assert made.exit_code == 0, made.output
    options = ["--from", parent, "--out", out, "--threads=1", "--epochs=1"]
    refused = tim4rec("train", folder / "log.csv", *options, "--ensemble=3")
    assert "--ensemble 3: " in refused.output
    done = tim4rec("train", folder / "log.csv", *options)
    assert done.exit_code == 0, done.output
    assert "model 2 of 2" in done.output
    found = load_artefact(out)
    assert found.model.config.n_groups == 2
    assert found.metrics["ensemble"] == 2


def test_what_is_held_out_is_a_share_of_what_is_new(log: Log, parent: Artefact) -> None:
    times = np.sort(log.frame["time_ms"].to_numpy())
    assert share_held_out(log, None) is None, "the log is too short"
    many = replace(log, frame=pl.concat([log.frame] * 20))
    since = int(times[len(times) // 2])
    new = 20 * int((times > since).sum())
    assert share_held_out(many, since) == min(new // 2, 5_000) / (20 * len(times))
    assert share_held_out(many, int(times[-2])) is None
    unknown = many.frame.with_columns(
        time_ms=pl.when(pl.int_range(pl.len()) == 3).then(-(2**63)).otherwise("time_ms")
    )
    assert share_held_out(replace(many, frame=unknown), since) is None


@pytest.mark.parametrize("training", [7, {"targets": 0}, {"targets": "many"}, {"loss": "none"}])
def test_settings_that_no_training_has_written_are_refused(training: object) -> None:
    with pytest.raises(ValueError, match="training"):
        inherited({"training": training})
    assert inherited({}) == {}
    assert inherited({"training": {"seed": 3, "targets": 7}}) == {"targets": 7}


@pytest.mark.parametrize("time", ["sequence", "none"])
def test_any_time_path_goes_on_and_all_is_new_where_a_parent_does_not_say_until_when(
    folder: Path, tmp_path: Path, time: str
) -> None:
    log, parent, out = folder / "log.csv", tmp_path / "parent", tmp_path / "next"
    made = tim4rec("train", log, "--until", iso(UNTIL), "--out", parent, f"--time={time}", *SMALL)
    assert made.exit_code == 0, made.output
    metrics = json.loads((parent / METRICS).read_text())
    del metrics["until"], metrics["protocol"], metrics["training"]
    (parent / METRICS).write_text(json.dumps(metrics))
    done = tim4rec("train", log, "--from", parent, "--out", out, "--epochs=1", "--threads=1")
    assert done.exit_code == 0, done.output
    assert "does not say until when it was trained: all is new" in done.output
    found = load_artefact(out)
    assert found.model.config.time == time
    assert found.metrics["warm_start"]["since"] is None
    assert found.metrics["warm_start"]["new_targets"] == found.metrics["data"]["training_targets"]


def test_metrics_that_no_training_has_written_are_refused(folder: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(folder / "parent", parent)
    for changed, message in (
        ({"until": "soon"}, "metrics.json: until must be ISO 8601"),
        ({"protocol": 7}, "metrics.json: protocol: it must be an object, not 7"),
        ({"training": {"loss": 3}}, "metrics.json: training: loss must be full or sampled"),
    ):
        (parent / METRICS).write_text(json.dumps({"until": iso(UNTIL)} | changed))
        refused = tim4rec("train", folder / "log.csv", "--from", parent, "--out", tmp_path / "next")
        assert refused.exit_code == 1
        assert message in refused.stderr

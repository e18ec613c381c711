"""Models and figures of the walk forward in time, and the command."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from benchmarks import over_time
from benchmarks.forward.summary import summarise
from benchmarks.forward.training import frozen_model, retrained_models
from tests.training.logs import make_log
from training.forward.events import Events
from training.forward.models import AFTER, AT, BEFORE, UNKNOWN, Served
from training.forward.walk import DAY_MS, Walk
from training.interactions import Log

pytestmark = pytest.mark.usefixtures("few_steps")

Row = tuple[str, str, int]
COUNTED = ("popularity", "transitions", "item-knn")
ITEMS = "abcdefgh"


def ring(users: int = 60) -> list[Row]:
    """Users who walk a ring of items, of which a new one comes every now and then."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(users):
        item, time = int(draw.integers(20)), int(draw.integers(300))
        for _ in range(12):
            item, time = item + int(draw.integers(1, 3)), time + int(draw.integers(1, 60))
            rows.append((f"u{user}", f"i{item % (20 + time // 40)}", 10**12 + time * DAY_MS))
    return rows


def test_a_retrained_model_is_trained_on_what_came_before_the_border(tmp_path: Path) -> None:
    rows = ring()
    log = make_log(rows)
    walk = Walk.of(Events.of(log), 0.5, 2)
    border = int(walk.borders[1])
    later = [(user, "i3" if time >= border else item, time) for user, item, time in rows]
    changed = make_log(later)
    assert changed.frame["item_id"].to_list() != log.frame["item_id"].to_list()

    def trained(log: Log, walk: Walk, folder: Path) -> list[Served]:
        console = Console(quiet=True)
        options: dict[str, Any] = {"threads": 1, "targets": 64}
        frozen = frozen_model(log, walk, folder / "a", console, max_epochs=1, **options)
        return retrained_models(log, walk, frozen, folder / "b", console, **options)

    ours = trained(log, walk, tmp_path / "ours")
    others = trained(changed, Walk.of(Events.of(changed), 0.5, 2), tmp_path / "others")
    assert len(ours) == 2
    assert len(ours[1].item_ids) > len(ours[0].item_ids)
    for one, other in zip(ours, others, strict=True):
        assert one.item_ids == other.item_ids
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    first, second = (served.model.blocks[0].ssd.state_dict() for served in ours)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_figures_are_means_over_events_of_a_slice_and_period() -> None:
    rows = [(f"u{n % 5}", ITEMS[n * n % 8], n) for n in range(60)]
    walk = Walk.of(Events.of(make_log(rows)), 0.5, 3)
    ranks = np.arange(1, len(walk.rows) + 1)
    everything = summarise(walk, {"count": ranks})[0]
    assert everything.period_events == [10, 10, 10]
    assert [period and period["HR@10"] for period in everything.periods] == [1.0, 0.0, 0.0]
    assert everything.total["MRR@10"] == pytest.approx(sum(1 / n for n in range(1, 11)) / 30)
    assert everything.intervals["HR@10"][0] <= 1 / 3 <= everything.intervals["HR@10"][1]


@pytest.mark.slow
def test_the_command_trains_once_and_tells_every_policy_and_slice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data" / "ring"
    data.mkdir(parents=True)
    frame = make_log(ring(users=500)).frame.with_columns(timestamp=pl.col("time_ms") // 1000)
    (data / "interactions.csv.gz").write_bytes(
        gzip.compress(frame.drop("time_ms").write_csv().encode())
    )
    report = tmp_path / "report.json"

    def run(*options: str) -> dict[str, Any]:
        over_time.main([
            "--dataset", "ring", "--data", str(data.parent), "--runs", str(tmp_path / "runs"),
            "--periods", "2", "--epochs", "1", "--json", str(report), *options,
        ])  # fmt: skip
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    first = run()
    asked = [
        f"{name}, {at}"
        for name in ("frozen", "retrained", "served", "one-mixture", "live-off")
        for at in (AFTER, BEFORE, AT, UNKNOWN)
    ]
    of_all = [row for row in first["figures"] if row["slice"] == "all events"]
    assert [row["policy"] for row in of_all] == [*COUNTED, *asked]
    assert {row["events"] for row in of_all} == {first["events"]}
    assert first["behind"] == []  # nothing has so many events
    checkpoints = sorted((tmp_path / "runs").rglob("checkpoint.safetensors"))
    assert len(checkpoints) == 4  # frozen, retrained, published before its refit and after
    written = [path.stat().st_mtime_ns for path in checkpoints]
    assert run() == first
    assert [path.stat().st_mtime_ns for path in checkpoints] == written
    capsys.readouterr()
    learn = run("--policies", "learn")
    assert f"learn, {AFTER}" in {row["policy"] for row in learn["figures"]}
    assert "border 1: undecided: " in capsys.readouterr().out
    alone = run("--policies", "item-knn")
    assert [row for row in first["figures"] if row["policy"] == "item-knn"] == [
        row for row in alone["figures"] if row["policy"] == "item-knn"
    ]


def test_a_period_without_an_event_of_a_slice_has_no_figures() -> None:
    rows = [("u", item, n) for n, item in enumerate(ITEMS)] + [("late", "a", 8), ("v", "b", 9)]
    walk = Walk.of(Events.of(make_log([*rows, ("v", "c", 10), ("v", "d", 11)])), 0.5, 2)
    figures = summarise(walk, {"first": np.ones(len(walk.rows), dtype=np.int64)})
    newcomers = next(row for row in figures if row.slice == "users without history")
    assert newcomers.period_events == [1, 1]
    new_items = next(row for row in figures if row.slice == "items new at the cut")
    assert new_items.period_events == [2, 0]
    assert new_items.periods[1] is None
    assert json.loads(json.dumps(new_items.to_dict(), allow_nan=False))["periods"][1] is None

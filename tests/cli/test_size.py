"""`tim4rec size` against what the same users take in a real store."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from benchmarks.store import NEVER, Setting, measure
from cli.size import Sizes
from model import ModelConfig, TiM4Rec
from service.settings import Settings
from tests.cli.conftest import tim4rec

SERVERS_OWN = 64_000
"""Bytes."""
LAYOUT = TiM4Rec(ModelConfig(n_items=1)).state_layout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "precision", "limit", "users", "events", "event_id"),
    [
        (NEVER, "float32", 0, 1200, 3, 0),
        (NEVER, "float32", 0, 800, 6, 36),
        (NEVER, "float32", 0, 30, 150, 0),
        (4, "float32", 0, 60, 30, 0),
        (4, "float16", 0, 60, 30, 36),
        (4, "float32", 20, 60, 30, 0),
        (8, "float16", 8, 400, 30, 36),
    ],
)
def test_it_says_what_a_store_says(
    every: int, precision: str, limit: int, users: int, events: int, event_id: int
) -> None:
    setting = Setting(every, precision, "no", limit)  # type: ignore[arg-type]
    cost = asyncio.run(measure(setting, LAYOUT, users, events, bool(event_id)))
    settings = Settings(
        artefact=Path(),
        snapshot_every=every,
        snapshot_precision=precision,  # type: ignore[arg-type]
        history_limit=limit,
        dedup_window=limit or 1000,
    )
    sizes = Sizes(LAYOUT, settings, event_id=event_id)
    draw = random.Random(0)
    lengths = [draw.randint(1, 2 * events - 1) for _ in range(users)]  # as the benchmark does
    assert cost.events == sum(lengths)
    memory = sum(sizes.record(n) + (n >= every) * sizes.snapshot(n) for n in lengths) / users
    to, back = (sum(n * sizes.append(n)[i] for n in lengths) / sum(lengths) for i in (0, 1))
    file = sum(n * sizes.file(n) for n in lengths) / sum(lengths)
    miss = sum(sizes.miss(n, n >= every)[1] for n in lengths) / users
    expected = {"memory": memory, "to": to, "back": back, "file": file, "miss": miss}
    measured = [cost.memory, cost.received, cost.sent, cost.file, cost.miss]
    found = dict(zip(expected, measured, strict=True))
    # Beside the records the server has buffers of its own, which come and go.
    spare = SERVERS_OWN / users
    assert found.pop("memory") == pytest.approx(expected.pop("memory"), rel=0.15, abs=spare)
    assert found == pytest.approx(expected, rel=0.15)


def test_what_it_prints(model_folder: Path) -> None:
    result = tim4rec("size", "--users", 10_000_000, "--event-id-bytes", 36)
    assert result.exit_code == 0, result.output
    assert "10,000,000 users of 100 interactions" in result.output
    assert "benchmarks.record_size" in result.output
    rows = {line.split("│")[1].strip(): line for line in result.output.splitlines() if "│" in line}
    # benchmarks.record_size says 17,432 B for the record; a snapshot takes 38 KB.
    assert "183 GB" in rows["store: records"]
    assert "384 GB" in rows["store: snapshots"]
    assert "568 GB" in rows["store: memory"]
    small = tim4rec("size", model_folder, "--users", 10_000_000).output
    assert "384 GB" not in small  # its states are smaller
    few = tim4rec("size", "--users", 10_000_000, "--with-snapshot", 0).output
    assert "384 GB" not in few


def test_impossible_settings_are_named() -> None:
    result = tim4rec("size", "--history-limit", 10)
    assert result.exit_code == 1
    assert "history_limit 10 must be 0 or at least dedup_window" in result.output

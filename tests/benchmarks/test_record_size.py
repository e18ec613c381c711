"""The benchmark of record sizes, on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks.record_size import main


def test_sizes_grow_with_events_and_ids(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(main)
    report = tmp_path / "sizes.json"
    result = CliRunner().invoke(command, ["5", "50", "--json", str(report)])
    assert result.exit_code == 0, result.output
    sizes = {(size["event_ids"], size["events"]): size for size in json.loads(report.read_text())}
    for event_ids in (False, True):
        few, many = sizes[event_ids, 5], sizes[event_ids, 50]
        assert 9 < many["file"] / few["file"] < 11
        assert 5 < many["memory"] / few["memory"] < 11
        # An event holds a header of 26 bytes, an item id of 8 and, perhaps, an id of 36.
        assert min(few["file"], few["memory"]) > 5 * (34 + 36 * event_ids)
    assert sizes[False, 50]["memory"] < sizes[True, 50]["memory"]
    assert sizes[False, 50]["encoding"] != sizes[True, 50]["encoding"]

"""The measurement by length: the command at tiny sizes, and what it has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks import sequence_length as module  # noqa: E402


@pytest.mark.slow
def test_a_row_for_each_work_model_and_length(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module.main)
    file = tmp_path / "lengths.json"
    sizes = ["--length=6", "--length=3", "--items=20", "--batch=2", "--rounds=2"]
    done = CliRunner().invoke(app, [*sizes, f"--json={file}"])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    rows = {(row["work"], row["model"], row["length"]): row for row in found["rows"]}
    expected = {
        (work, model, length)
        for work in module.TITLES
        for model in module.models(20, 3)
        for length in (3, 6)
        if (work, model) != ("every", "TiM4Rec sequence")
    }
    assert rows.keys() == expected
    assert len(found["rows"]) == len(expected)
    for (work, model, length), row in rows.items():
        assert row["ms"] > 0
        assert row["over_ours"] == 1 if model == module.OURS else row["over_ours"] > 0
        assert row["over_shortest"] == row["ms"] / rows[work, model, 3]["ms"]
        assert f"at {length}" in done.output
    assert [row["length"] for row in found["served"]] == [3, 6]
    for served in found["served"]:
        assert min(served.values()) > 0


def test_a_step_trains_every_model_on_the_next_items() -> None:
    whole = module.random_batch(20, 3, 5)
    torch.testing.assert_close(whole.items[:, 1:], whole.targets[:, :-1])
    torch.testing.assert_close(whole.times[:, 1:], whole.request_times[:, :-1])
    last = module.last_targets(whole)
    assert last.targets.count_nonzero(1).tolist() == [1, 1, 1]
    assert (last.targets[:, -1] == whole.targets[:, -1]).all()
    for name, model in module.models(20, 5).items():
        before = {key: value.clone() for key, value in model.named_parameters()}
        module.training(model, last)()
        # Nothing but biases that cancel in a softmax may be without a gradient.
        moved = [key for key, value in model.named_parameters() if (value != before[key]).any()]
        assert len(moved) > 0.8 * len(before), name

"""`tim4rec train` learns what the items of a table are, and goes on with it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from model.artefact import load_artefact
from model.content import About, Content, feature_hashes
from tests.cli.conftest import tim4rec
from tests.training.logs import DAY_MS, kinds_log, table_of

QUICK = ["--epochs=1", "--d-model=16", "--d-state=8", "--targets=256", "--threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, its first part, an item table with an attribute, and a model of that part."""
    folder = tmp_path_factory.mktemp("content")
    first, later = (
        log.frame.select("user_id", "item_id", timestamp="time_ms")
        for log in (kinds_log(), kinds_log(users=60, seed=1))
    )
    later = later.with_columns(pl.col("timestamp") + 200 * DAY_MS, pl.col("user_id") + "b")
    first.write_csv(folder / "first.csv")
    pl.concat([first, later]).write_csv(folder / "log.csv")
    table = table_of(kinds_log()).with_columns(
        pl.col("categories").list.join("|"), made=pl.lit("here")
    )
    table.write_csv(folder / "items.csv")
    done = tim4rec(
        "train", folder / "first.csv", "--items", folder / "items.csv", "--out", folder / "model",
        "--ensemble=2", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def content_of(folder: Path) -> Content:
    content = load_artefact(folder).model.content
    assert content is not None
    return content


def test_a_model_has_a_content_where_items_are_told_of(folder: Path, tmp_path: Path) -> None:
    artefact, content = load_artefact(folder / "model"), content_of(folder / "model")
    assert content.vectors.shape == (10, 32)
    assert (content.scale, content.shift.any()) != (1.0, False), "fitted on what was set aside"
    assert feature_hashes(About(values={"made": ["here"]}))[0] in content.hashes
    assert artefact.edition != artefact.identity
    assert "10 words" in (folder / "model" / "README.md").read_text()
    for options in (
        ["--no-content", "--items", folder / "items.csv"],
        ["--loss=sampled", "--negatives=20", "--items", folder / "items.csv"],
        [],
    ):
        done = tim4rec(
            "train", folder / "first.csv", "--out", tmp_path / "model", "--no-refit", *options,
            *QUICK,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert load_artefact(tmp_path / "model").model.content is None
        assert ("not learned from" in done.output) == ("--loss=sampled" in options)
        assert "words" not in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("told", [False, True])
def test_a_warm_start_goes_on_with_it(folder: Path, tmp_path: Path, told: bool) -> None:
    items = ["--items", folder / "items.csv"] if told else []
    done = tim4rec(
        "train", folder / "log.csv", "--from", folder / "model", "--out", tmp_path / "model",
        "--epochs=1", "--threads=1", *items,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    before, after = content_of(folder / "model"), content_of(tmp_path / "model")
    assert after.hashes.tolist() == before.hashes.tolist(), "attributes are remembered"
    assert (after.scale, after.shift.tolist()) == (before.scale, before.shift.tolist())
    changed = (after.vectors != before.vectors).any(1)
    assert changed.sum() == (10 if told else 9)


def test_a_warm_start_can_not_do_without(folder: Path, tmp_path: Path) -> None:
    done = tim4rec(
        "train", folder / "log.csv", "--from", folder / "model", "--out", tmp_path / "model",
        "--no-content",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "--no-content can't be given with --from" in " ".join(done.output.split())

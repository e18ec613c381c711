"""Which rows of a log with kinds are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.steps import read_steps
from tests.cli.conftest import tim4rec
from training.tables import InputError

ROWS = ["u,a,1,view", "u,b,2,", "u,c,3,skip", "v,d,4,buy", "v,e,5,share"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp,kind", *ROWS]))
    return path


@pytest.mark.parametrize(
    ("rules", "items"),
    [
        (None, "abcde"),
        ("", "abcde"),
        ("view:step,buy:step+hide,*:log", "abd"),
        ("skip:hide,share:count", "abd"),
        ("*:log", "b"),
    ],
)
def test_only_steps_are_taken(log: Path, rules: str | None, items: str) -> None:
    read = read_steps(log, rules, skip_bad_rows=False)
    assert read.frame.columns == ["user_id", "item_id", "time_ms"]
    assert "".join(read.frame["item_id"]) == items
    left_out = [f"{5 - len(items)} of 5 rows are no steps and left out"]
    assert read.notes == ([] if rules is None else left_out)


def test_what_cannot_be_used_is_named(log: Path) -> None:
    log.write_text("\n".join(["user_id,item_id,timestamp,kind", ROWS[2]]))
    with pytest.raises(InputError, match="no row is a step by --kinds skip:hide"):
        read_steps(log, "skip:hide", skip_bad_rows=False)
    result = tim4rec("train", log, "--kinds", "skip:hid")
    assert result.exit_code == 1
    assert "--kinds: 'skip:hid': 'hid' is no effect" in result.stderr

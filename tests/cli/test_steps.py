"""Which rows of a log with kinds are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.steps import read_steps
from model.kinds import KindRules
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
        ("", "abcde"),
        ("view:step,buy:step+hide,*:log", "abd"),
        ("skip:hide,share:count", "abd"),
        ("*:log", "b"),
    ],
)
def test_only_steps_are_taken(log: Path, rules: str, items: str) -> None:
    read = read_steps(log, KindRules.parse(rules), skip_bad_rows=False)
    assert read.frame.columns == ["user_id", "item_id", "time_ms"]
    assert "".join(read.frame["item_id"]) == items
    assert read.notes == [
        f"{5 - len(items)} of 5 rows are no steps by {KindRules.parse(rules)} and left out"
    ]
    assert read.kinds == KindRules.parse(rules)


def test_several_kinds_without_rules_are_not_trained_on(log: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_steps(log, None, skip_bad_rows=False)
    for said in ("view 1", "skip 1", "without 1", "--kinds", "'*:step'"):
        assert said in str(caught.value)
    result = tim4rec("train", log, "--any-time")
    assert result.exit_code == 1
    assert "of several kinds" in result.stderr
    told = tim4rec("train", log, "--any-time", TIM4REC_KINDS="none:step,*:log")
    assert "4 of 5 rows are no steps by none:step,*:log and left out" in told.stderr


@pytest.mark.parametrize("kind", ["", "view", "NULL"])
def test_one_kind_needs_no_rules(log: Path, kind: str) -> None:
    lines = [f"u,{item},{time},{kind}" for time, item in enumerate("abc")]
    log.write_text("\n".join(["user_id,item_id,timestamp,kind", *lines]))
    read = read_steps(log, None, skip_bad_rows=False)
    assert read.frame.columns == ["user_id", "item_id", "time_ms"]
    assert "".join(read.frame["item_id"]) == "abc"


def test_an_export_without_rules_is_all_steps(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "_export").mkdir(parents=True)
    log.rename(folder / "part-0.csv")
    (folder / "manifest.json").write_text('{"parts": [{"name": "part-0.csv"}]}')
    assert len(read_steps(folder, None, skip_bad_rows=False).frame) == 5


def test_what_cannot_be_used_is_named(log: Path) -> None:
    log.write_text("\n".join(["user_id,item_id,timestamp,kind", ROWS[2]]))
    with pytest.raises(InputError, match=r"by the rules skip:hide,\*:step; there are skip 1"):
        read_steps(log, KindRules.parse("skip:hide"), skip_bad_rows=False)
    result = tim4rec("train", log, "--kinds", "skip:hid")
    assert result.exit_code == 1
    assert "--kinds: 'skip:hid': 'hid' is no effect" in result.stderr

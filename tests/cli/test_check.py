"""`tim4rec check`: what it finds in files, and that it agrees with `train`."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import tim4rec

START = 1_700_000_000
ITEMS = [f"i{n}" for n in range(15)]


def shop(users: int = 60, kinds: tuple[str, ...] = ()) -> list[list[object]]:
    draw = random.Random(2)
    rows: list[list[object]] = [
        [f"u{user}", draw.choice(ITEMS), START + 3600 * step + user]
        for user in range(users)
        for step in range(12)
    ]
    return [[*row, draw.choice(kinds)] for row in rows] if kinds else rows


def written(path: Path, header: str, rows: list[list[object]], separator: str = ",") -> Path:
    lines = [header, *(separator.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return written(tmp_path / "log.csv", "user_id,item_id,timestamp", shop())


def checked(*arguments: object) -> tuple[Result, dict[str, Any]]:
    files = [argument for argument in arguments if isinstance(argument, Path)]
    report = files[0].with_name("report.json")
    result = tim4rec("check", *arguments, "--json", report)
    return result, json.loads(report.read_text()) if report.exists() else {}


def next_command(result: Result) -> list[str]:
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: tim4rec "))


def test_a_sound_log(log: Path) -> None:
    result, found = checked(log)
    assert result.exit_code == 0, result.output
    assert "720 interactions of 60 users with 15 items, times from 2023-11-14" in result.stdout
    assert "timestamp: epoch seconds" in result.stdout
    assert "the core leaves nothing out" in result.stdout
    assert "not given: a table of the items" in result.stdout
    assert next_command(result) == ["train", str(log)]
    assert found["refusals"] == []
    assert found["log"]["summary"]["users"] == 60


def test_a_shops_export_becomes_a_command_that_trains(tmp_path: Path) -> None:
    rows = [
        [*row[:2], row[2], kind, 3.5]
        for row, kind in zip(shop(), ["view", "view", "cart"] * 240, strict=True)
    ]
    rows += [["u1", "i1", "soon", "view", 1], ["", "i1", START, "view", 1]]
    header = "customer_id;sku;event_time;event_type;price"
    log = written(tmp_path / "shop.csv", header, rows, ";")
    items = written(
        tmp_path / "products.csv",
        "sku,name,category,price,ean,stock",
        [[item, "" if n % 5 == 0 else f"Item {n}", "a|b", f"{n}.50", f"00{n}", n]
         for n, item in enumerate([*ITEMS, "never"])],
    )  # fmt: skip
    result, found = checked(items, log)
    assert result.exit_code == 1
    for said in (
        "fields are separated by semicolon",
        "2 rows can't be read",
        "timestamp 'soon' is neither",
        "kinds: view 480, cart 240",
        "16 items, 4 without a title, 0 without a category",
        "attribute price: number, 0% missing",
        "attribute ean: text",
        "15 of the log's 15 items are in",
        "1 items of the table are not in the log",
    ):
        assert said in result.stdout, said
    for said in ("did you mean --columns", "several kinds", "did you mean --item-columns"):
        assert said in result.stderr
    assert found["overlap"]["shared"] == 15
    words = next_command(result)
    assert words[words.index("--kinds") + 1] == "view:step,*:count"
    assert "title=name" in words[words.index("--item-columns") + 1]
    # What it says is what train takes, and check then finds nothing to refuse.
    again = [word for word in words[1:] if word not in (str(log), "--items", str(items))]
    assert tim4rec("check", log, items, *again).exit_code == 0
    small = ["--epochs", "1", "--d-model", "16", "--layers", "1", "--out", tmp_path / "model"]
    trained = tim4rec(*words, *small)
    assert trained.exit_code == 0, trained.output
    assert "480 interactions of 60 users" in trained.stderr
    assert "dropped by the core" in trained.stderr or "leaves nothing out" in trained.stderr


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["u1", "i1", START], ["u1", "i1", START]], "1 rows repeat an earlier one exactly"),
        ([["u1", "i1", START], ["u1", "i2", START]], "2 rows of 1 users have the time of another"),
        ([["u1", "i1", START + 40 * 86_400]], "no interaction for 39."),
        ([["bot", f"i{n % 15}", START + n] for n in range(1200)], "'bot' has 1,200 interactions"),
        ([[f"n{n}", "i1", START + 100] for n in range(400)], "400 rows (36%) have the same time"),
        ([["U1", "I1", START + 5]], "2 values of item_id differ from another by case"),
        ([[f"once{n}", "i1", START + n] for n in range(5)], "5 of 65 users"),
    ],
)  # fmt: skip
def test_what_is_suspicious_is_said(tmp_path: Path, rows: list[list[object]], said: str) -> None:
    log = written(tmp_path / "log.csv", "user_id,item_id,timestamp", [*shop(), *rows])
    result, _ = checked(log)
    assert result.exit_code == 0, result.output
    assert said in result.stdout


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("user_id,item_id,when_exactly", "u,i,1700000000", "no column timestamp"),
        ("user_id,item_id,timestamp", "u,i,45000", "a spreadsheet's day numbers"),
        ("user_id,item_id,timestamp", "u,i,soon", "no interactions in it"),
        ("user_id,item_id,timestamp", "u,i,1700000000", "no interactions are left"),
        ("title,price", "x,3", "no column item_id"),
    ],
)
def test_what_train_would_refuse_is_refused(
    tmp_path: Path, header: str, row: str, said: str
) -> None:
    log = written(tmp_path / "log.csv", header, [[row]])
    result, found = checked(log)
    assert result.exit_code == 1
    assert said in result.stderr
    assert found["next"] is None
    assert "next:" not in result.stdout
    assert tim4rec("train", log, "--out", tmp_path / "model").exit_code == 1


def test_ids_of_something_else_are_refused(log: Path) -> None:
    items = written(log.with_name("items.csv"), "item_id,title", [["x1", "X"], ["x2", "Y"]])
    result, _ = checked(log, items)
    assert result.exit_code == 1
    assert "none of the log's items, 15, is in" in result.stderr


def test_two_logs_are_told_apart_from_parts(log: Path) -> None:
    other = written(log.with_name("other.csv"), "user_id,item_id,timestamp", shop())
    result = tim4rec("check", log, other)
    assert result.exit_code == 1
    assert "2 logs: give one, or a folder with its parts" in result.stderr


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("item_id,title\n", "items.csv: no items in it"),
        ("item_id,title\n,x\nNULL,y\n", "items.csv: no items in it: none of its rows can be read"),
    ],
)
def test_an_empty_item_table_is_named_for_what_it_is(log: Path, table: str, said: str) -> None:
    items = log.with_name("items.csv")
    items.write_text(table)
    for command in (["check", log, items], ["train", log, "--items", items]):
        result = tim4rec(*command, "--skip-bad-rows")
        assert result.exit_code == 1
        assert said in result.stderr


def test_a_log_of_bad_rows_alone_is_named_for_what_it_is(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", "user_id,item_id,timestamp", [["u", "i", "soon"]])
    result = tim4rec("train", log, "--skip-bad-rows")
    assert result.exit_code == 1
    assert "no interactions in it: none of its rows can be read:" in result.stderr
    assert "line 2: timestamp 'soon'" in result.stderr


def test_an_end_before_the_first_row_shows_the_times_there_are(log: Path) -> None:
    result = tim4rec("train", log, "--until", "2020-01-01")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "--until 2020-01-01" in line
    assert "nothing is left of a log from 2023-11-14" in line

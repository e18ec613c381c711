from __future__ import annotations

import gzip
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from cli import run
from cli.console import CommandError
from cli.ports import require_free_port
from cli.reading import Reading
from cli.run_note import RunNote
from cli.source import Source

ROOT = Path(__file__).parents[2]


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "interactions.csv").write_text(
        "user_id,item_id,timestamp\nann,blue-shoes,1714555800\n"
    )
    (tmp_path / "shop" / "items.csv").write_text("item_id,title\nblue-shoes,Blue shoes\n")
    (tmp_path / "clicks.2024.csv.gz").write_bytes(b"")
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run, and what would have been served."""
    seen: list[list[str]] = []

    class Beside(AbstractContextManager[None]):
        def __init__(self, command: list[str]) -> None:
            assert command == [sys.executable, "-m", "cli.compile_ahead"]

        def __exit__(self, *fault: object) -> None:
            pass

    def note(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        seen.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    def serve(given: dict[str, Any], user_id: str) -> None:
        values = [str(given[key]) for key in ("artefact", "port", "data_dir", "device")
                  if key in given]  # fmt: skip
        seen.append(["serve", *values, user_id])

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(subprocess, "Popen", Beside)
    monkeypatch.setattr(run, "served_with", serve)
    return seen


def test_a_free_port_is_taken_as_such(free_port: int) -> None:
    require_free_port(free_port)


def test_a_port_of_a_connection_just_closed_counts_as_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # The server's end closes first, so its port stays in TIME_WAIT.
        client.close()
    require_free_port(port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(CommandError, match=rf"PORT={port} .* between 1 and 65535"):
        require_free_port(port)


def test_a_busy_port_is_said_in_one_line_before_anything_is_done(
    busy_port: int, folder: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.run", "--port", str(busy_port), "--data", "shop"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {busy_port} is in use" in done.stderr
    assert not (folder / "artefacts").exists()


def test_a_folder_gives_its_name_its_log_and_its_items(folder: Path) -> None:
    source = Source.of(Path("shop"))
    assert (source.log, source.items) == (Path("shop/interactions.csv"), Path("shop/items.csv"))
    assert (source.artefact, source.state) == (Path("artefacts/shop"), Path("state-shop"))
    named = Source.of(Path("shop/interactions.csv"))
    assert replace(named, given=source.given) == source
    assert Source.of(Path("shop/../shop/")).artefact == source.artefact


def test_a_log_gives_its_name_without_endings(folder: Path) -> None:
    source = Source.of(Path("clicks.2024.csv.gz"))
    assert (source.log, source.items) == (Path("clicks.2024.csv.gz"), None)
    assert (source.artefact, source.state) == (Path("artefacts/clicks"), Path("state-clicks"))


def test_a_folder_of_parts_is_a_log(folder: Path) -> None:
    (folder / "events").mkdir()
    (folder / "events" / "part-0000.csv").write_text("user_id,item_id,timestamp\n")
    source = Source.of(Path("events"))
    assert (source.log, source.artefact) == (Path("events"), Path("artefacts/events"))
    (folder / "events").rename(folder / "shop" / "interactions")
    (folder / "shop" / "interactions.csv").unlink()
    assert Source.of(Path("shop")).log == Path("shop/interactions")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("nowhere", "DATA=nowhere: no such file or folder"),
        ("empty", r"DATA=empty: no interactions\.\* in that folder; it is empty"),
        ("other", r"it has orders\.csv, products\.csv: rename the log to interactions\.csv or so"),
        ("two", r"interactions\.csv and interactions\.tsv: leave one of them"),
    ],
)
def test_data_without_one_log_is_refused(folder: Path, data: str, said: str) -> None:
    for name in ("empty", "other/orders.csv", "other/products.csv", "two/interactions.csv",
                 "two/interactions.tsv"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("") if path.suffix else path.mkdir()
    with pytest.raises(CommandError, match=said):
        Source.of(Path(data))


def test_a_model_of_another_log_is_not_taken_for_this_ones(folder: Path) -> None:
    source = Source.of(Path("shop"))
    RunNote.new(source, Reading(), "ann").write(source)
    (folder / "artefacts" / "shop").mkdir()
    assert RunNote.of(source) is not None
    (folder / "elsewhere").mkdir()
    (folder / "shop").rename(folder / "elsewhere" / "shop")
    moved = Source.of(Path("elsewhere/shop"))
    refusal = r"artefacts/shop is the model of .*/shop/interactions\.csv, not of .*/elsewhere/shop/"
    with pytest.raises(CommandError, match=refusal):
        RunNote.of(moved)
    (folder / "artefacts" / "shop").rmdir()
    assert RunNote.of(moved) is None


def test_the_first_time_gets_the_data_trains_and_serves(
    folder: Path, commands: list[list[str]], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = subprocess.run

    def with_data(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        if command[3] == "data":
            (folder / "data" / "ml-100k").mkdir(parents=True)
            for name in ("interactions", "items"):
                text = (folder / "shop" / f"{name}.csv").read_bytes()
                (folder / "data" / "ml-100k" / f"{name}.csv.gz").write_bytes(gzip.compress(text))
        return note(command)

    monkeypatch.setattr(subprocess, "run", with_data)
    run.run(port=free_port, device="cpu")
    log, items = "data/ml-100k/interactions.csv.gz", "data/ml-100k/items.csv.gz"
    model, state = "artefacts/ml-100k", ["--data-dir", "state-ml-100k"]
    assert commands == [
        ["data", "ml-100k", "--out", "data/ml-100k"],
        ["train", log, "--items", items, "--out", model, "--recipe", "quick", "--device", "cpu"],
        ["import-log", log, "--artefact", model, *state],
        ["import-items", items, *state],
        ["warm", model, *state, "--device", "cpu"],
        ["serve", model, str(free_port), "state-ml-100k", "cpu", "ann"],
    ]


def test_an_own_log_is_trained_on_and_put_into_a_store_of_its_own(
    folder: Path, commands: list[list[str]], free_port: int
) -> None:
    run.run(port=free_port, data=Path("shop"))
    state = ["--data-dir", "state-shop"]
    assert commands == [
        [
            "train",
            "shop/interactions.csv",
            "--items",
            "shop/items.csv",
            "--out",
            "artefacts/shop",
            "--recipe",
            "full",
        ],
        ["import-log", "shop/interactions.csv", "--artefact", "artefacts/shop", *state],
        ["import-items", "shop/items.csv", *state],
        ["warm", "artefacts/shop", *state],
        ["serve", "artefacts/shop", str(free_port), "state-shop", "ann"],
    ]


def test_the_second_time_only_serves(
    folder: Path, commands: list[list[str]], free_port: int
) -> None:
    run.run(port=free_port, data=Path("shop"))
    trained(folder)
    commands.clear()
    run.run(port=free_port, data=Path("shop"))
    assert commands == [["serve", "artefacts/shop", str(free_port), "state-shop", "ann"]]


def test_it_goes_on_where_it_was_stopped(
    folder: Path, commands: list[list[str]], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the training: the store is filled, the model is not trained again."""
    monkeypatch.setattr(run, "_load", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run(port=free_port, data=Path("shop"))
    trained(folder)
    commands.clear()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    source = Source.of(Path("shop"))
    note = RunNote.of(source)
    assert note is not None
    assert not note.loaded


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def trained(folder: Path) -> None:
    """As `train` leaves it."""
    (folder / "artefacts" / "shop").mkdir(parents=True, exist_ok=True)
    (folder / "artefacts" / "shop" / "config.json").write_text("{}")


def test_a_changed_file_says_what_to_do_and_other_options_are_refused(
    folder: Path, commands: list[list[str]], free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(port=free_port, data=Path("shop"))
    trained(folder)
    capsys.readouterr()
    log = folder / "shop" / "interactions.csv"
    log.write_text(log.read_text() + "bob,red-scarf,1714759330\n")
    later = time.time_ns() + 10**9
    os.utime(log, ns=(later, later))
    run.run(port=free_port, data=Path("shop"))
    said = capsys.readouterr().err
    assert "changed since the training: shop/interactions.csv" in said
    assert "tim4rec import-log shop/interactions.csv --overlap" in said
    assert "tim4rec train shop/interactions.csv --from artefacts/shop" in said
    assert commands[-1][0] == "serve"
    with pytest.raises(typer.Exit):
        run.run(port=free_port, data=Path("shop"), kinds="view:step")
    said = capsys.readouterr().err
    assert "KINDS=view:step: artefacts/shop was trained with none: leave it out, or delete" in said


FOREIGN = "event_time;customer_id;sku;event_type\n2026-05-01;K1;7;view\n2026-05-02;K2;8;buy\n"
MEANT = {
    "columns": "user_id=customer_id,item_id=sku,timestamp=event_time,kind=event_type",
    "item_columns": "item_id=sku,title=name",
    "kinds": "view:step,*:count",
}


def foreign(folder: Path) -> None:
    (folder / "shop" / "interactions.csv").write_text(FOREIGN)
    (folder / "shop" / "items.csv").write_text("sku;name\n7;Shoe\n8;Scarf\n")


def test_what_is_not_said_is_offered_all_at_once(
    folder: Path, commands: list[list[str]], free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(folder)
    with pytest.raises(typer.Exit):
        run.run(port=free_port, data=Path("shop"), encoding="latin-1")
    assert commands == []
    *_, line = capsys.readouterr().err.splitlines()
    offered = shlex.split(line.partition("make run ")[2])
    assert offered == [
        "DATA=shop", *(f"{name.upper()}={value}" for name, value in MEANT.items()),
        "ENCODING=latin-1",
    ]  # fmt: skip
    run.run(port=free_port, data=Path("shop"), encoding="latin-1", **MEANT)
    assert commands[0][2:] == [
        "--columns", MEANT["columns"], "--encoding", "latin-1",
        "--item-columns", MEANT["item_columns"], "--kinds", MEANT["kinds"],
        "--items", "shop/items.csv", "--out", "artefacts/shop", "--recipe", "full",
    ]  # fmt: skip
    assert commands[2][:4] == [
        "import-items",
        "shop/items.csv",
        "--columns",
        "item_id=sku,title=name",
    ]
    assert commands[-1][-1] == "K1", "whose row is a step"


@pytest.mark.parametrize("agrees", [True, False])
def test_at_a_terminal_it_is_asked_for(
    folder: Path, commands: list[list[str]], free_port: int, monkeypatch: pytest.MonkeyPatch,
    agrees: bool,
) -> None:  # fmt: skip
    foreign(folder)
    asked: list[str] = []

    def confirm(text: str, default: bool) -> bool:
        asked.append(text)
        return agrees

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", confirm)
    if agrees:
        run.run(port=free_port, data=Path("shop"))
        assert MEANT["kinds"] in commands[0]
    else:
        with pytest.raises(typer.Exit):
            run.run(port=free_port, data=Path("shop"))
        assert commands == []
    assert len(asked) == 1
    assert all(shlex.quote(value) in asked[0] for value in MEANT.values())


def test_names_that_are_like_none_of_ours_are_listed(
    folder: Path, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "shop" / "interactions.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(typer.Exit):
        run.run(port=free_port, data=Path("shop"))
    assert (
        "the columns are 'a', 'b', 'c': say which is which by COLUMNS=" in capsys.readouterr().err
    )


def test_a_step_that_fails_ends_the_run_with_its_code(
    folder: Path, commands: list[list[str]], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 3))
    with pytest.raises(typer.Exit) as end:
        run.run(port=free_port, data=Path("shop"))
    assert end.value.exit_code == 3
    assert commands == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_hands_its_variables_on_and_lists_its_targets() -> None:
    def make(*arguments: str) -> str:
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    def handed_on(*variables: str) -> list[str]:
        dry = make("-n", "run", *variables).replace("\\\n", " ")
        return shlex.split(next(line for line in dry.splitlines() if "cli.run" in line))[4:]

    given = handed_on("PORT=9000", "DATA=my logs/a.csv", "DEVICE=cuda", "ITEM_COLUMNS=item_id=a b",
                      "KINDS=buy:step,*:count")  # fmt: skip
    assert given == ["--port", "9000", "--data", "my logs/a.csv", "--item-columns", "item_id=a b",
                     "--kinds", "buy:step,*:count", "--device", "cuda"]  # fmt: skip
    assert handed_on("PORT=8000", "DATA=", "DEVICE=") == ["--port", "8000"]
    shown = make()
    assert all(f"make {target}" in shown for target in ("install", "run", "test", "lint", "help"))

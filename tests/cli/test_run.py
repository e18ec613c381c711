from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import typer

from cli import run
from cli.console import CommandError
from cli.run import Source, require_free_port

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
    (tmp_path / "shop" / "interactions.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "shop" / "items.csv").write_text("item_id,title\n")
    (tmp_path / "clicks.2024.csv.gz").write_bytes(b"")
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run, the one that replaces the process last."""
    seen: list[list[str]] = []

    class Beside(AbstractContextManager[None]):
        def __init__(self, command: list[str]) -> None:
            assert command == [sys.executable, "-m", "cli.compile_ahead"]

        def __exit__(self, *fault: object) -> None:
            pass

    def note(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        seen.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    def replace(program: str, command: list[str]) -> None:
        assert program == sys.executable
        seen.append(command[3:])

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(subprocess, "Popen", Beside)
    monkeypatch.setattr(os, "execv", replace)
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
    expected = Source(Path("shop/interactions.csv"), Path("shop/items.csv"), Path("artefacts/shop"))
    assert Source.of(Path("shop")) == expected
    assert Source.of(Path("shop/interactions.csv")) == expected
    assert Source.of(Path("shop/../shop/")).artefact == expected.artefact


def test_a_log_gives_its_name_without_endings(folder: Path) -> None:
    source = Source.of(Path("clicks.2024.csv.gz"))
    assert source == Source(Path("clicks.2024.csv.gz"), None, Path("artefacts/clicks"))


@pytest.mark.parametrize("data", ["nowhere", "empty"])
def test_data_without_a_log_is_refused(folder: Path, data: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(CommandError, match=f"DATA={data}: no "):
        Source.of(Path(data))


def test_a_model_of_another_log_is_not_taken_for_this_ones(folder: Path) -> None:
    Source.of(Path("shop")).claim()
    (folder / "artefacts" / "shop").mkdir()
    Source.of(Path("shop/interactions.csv")).claim()
    (folder / "elsewhere").mkdir()
    (folder / "shop").rename(folder / "elsewhere" / "shop")
    moved = Source.of(Path("elsewhere/shop"))
    refusal = r"artefacts/shop is the model of .*/shop/interactions\.csv, not of .*/elsewhere/shop/"
    for _ in range(2):
        with pytest.raises(CommandError, match=refusal):
            moved.claim()
    (folder / "artefacts" / "shop").rmdir()
    moved.claim()


def test_the_first_time_gets_the_data_trains_and_serves(
    folder: Path, commands: list[list[str]], free_port: int
) -> None:
    run.run(port=free_port, device="cpu")
    log, items = "data/ml-100k/interactions.csv.gz", "data/ml-100k/items.csv.gz"
    model = "artefacts/ml-100k"
    assert commands == [
        ["data", "ml-100k", "--out", "data/ml-100k"],
        ["train", log, "--items", items, "--out", model, "--recipe", "quick", "--device", "cpu"],
        ["serve", model, "--port", str(free_port), "--device", "cpu"],
    ]


def test_a_log_of_ones_own_is_trained_on(
    folder: Path, commands: list[list[str]], free_port: int
) -> None:
    run.run(port=free_port, data=Path("clicks.2024.csv.gz"))
    assert commands == [
        ["train", "clicks.2024.csv.gz", "--out", "artefacts/clicks"],
        ["serve", "artefacts/clicks", "--port", str(free_port)],
    ]


def test_the_second_time_only_serves(
    folder: Path, commands: list[list[str]], free_port: int
) -> None:
    (folder / "artefacts" / "shop").mkdir(parents=True)
    (folder / "artefacts" / "shop" / "config.json").write_text("{}")
    run.run(port=free_port, data=Path("shop"))
    assert commands == [["serve", "artefacts/shop", "--port", str(free_port)]]


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

    dry = make("-n", "run", "PORT=9000", "DATA=my logs/a.csv", "DEVICE=cuda")
    assert 'cli.run --port "9000" --data "my logs/a.csv" --device "cuda"' in dry
    assert 'cli.run --port "8000"' in make("-n", "run", "PORT=8000", "DATA=", "DEVICE=")
    shown = make()
    assert all(f"make {target}" in shown for target in ("install", "run", "test", "lint", "help"))

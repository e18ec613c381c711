from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from learning.commands import CommandFailed, Commands
from tests.waited import LONG_S, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def commands(folder: Path, code: str) -> Commands:
    return Commands([sys.executable, "-c", code], os.environ, folder / "running.json")


def test_what_it_says_is_kept_and_its_status_given(tmp_path: Path, run: Run) -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(3)"
    log = tmp_path / "log"
    ended = run(commands(tmp_path, code).run(["judge", "a"], log, accepted=(0, 3)))
    assert ended.status == 3
    assert ended.seconds > 0
    assert log.read_text() == "['judge', 'a']\n"
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('error: no such file')", "train: no such file"),
        ("import sys; sys.exit(2)", "train: exit status 2"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "train: exit status -9"),
    ],
)
def test_why_it_failed(tmp_path: Path, run: Run, code: str, message: str) -> None:
    with pytest.raises(CommandFailed) as error:
        run(commands(tmp_path, code).run(["train"], tmp_path / "log"))
    assert str(error.value) == message


def test_it_ends_with_its_caller_and_all_that_it_started(tmp_path: Path, run: Run) -> None:
    started = tmp_path / "started"
    code = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        f"pathlib.Path({str(started)!r} + 'x').write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(started)!r} + 'x', {str(started)!r})\n"
        "time.sleep(3600)"
    )

    async def check() -> None:
        task = asyncio.create_task(commands(tmp_path, code).run(["train"], tmp_path / "log"))
        async with asyncio.timeout(LONG_S):
            while not started.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(check())
    for pid in map(int, started.read_text().split()):
        until(lambda pid=pid: not _lives(pid), "a signal takes a moment")  # type: ignore[misc]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next learner ends it")
def test_it_dies_with_a_learner_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from learning.commands import Commands
folder = Path({str(tmp_path)!r})
sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
run = Commands([sys.executable, "-c", sleeps], os.environ, folder / "running.json")
asyncio.run(run.run([], folder / "log"))
"""
    learner = subprocess.Popen([sys.executable, "-c", code])
    try:
        log = tmp_path / "log"
        until(lambda: log.exists() and log.read_text().strip(), "it has begun")
        command = psutil.Process(int(log.read_text()))
    finally:
        learner.kill()
        learner.wait()
    until(lambda: not command.is_running() or command.status() == "zombie", "it is gone")

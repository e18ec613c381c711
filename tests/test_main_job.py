"""The main job as a newcomer does it: the commands of docs/quickstart.md, from a shop's files to
answers, stopped, and gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.reaper import reap
from tests.service.processes import alive
from tests.waited import LONG_S

ROOT = Path(__file__).parents[1]
SHOP = Path("tests", "data", "shop")
STATE = "state-shop"
READY_WITHIN_S = 600
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")} | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}


def walk() -> list[str]:
    """The commands of the quick start's section on a log of one's own."""
    text = (ROOT / "docs" / "quickstart.md").read_text()
    (section,) = re.findall(r"^## With your own log$(.*?)^## ", text, re.M | re.S)
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section, re.S))
    return blocks.replace("\\\n", " ").splitlines()


def variables(command: str) -> list[str]:
    """Of a `make run`."""
    words = shlex.split(command)
    assert words[:2] == ["make", "run"]
    return sorted(words[2:])


def from_make(command: str, port: int) -> list[str]:
    """What `make run` would run, by this Python."""
    make = ["make", "--no-print-directory", "-n", "run", *variables(command), f"PORT={port}"]
    dry = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in dry.replace("\\\n", " ").splitlines() if "cli.run" in line)
    return [sys.executable, *shlex.split(line)[2:]]


def tim4rec(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line of ours, by this Python."""
    program, *words = shlex.split(command)
    assert Path(program).name == "tim4rec"
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip


def curl(command: str, port: int) -> dict[str, Any]:
    found = shlex.split(command.replace(":8000/", f":{port}/"))
    assert found[0] == "curl"
    answer = subprocess.run([*found, "-s", "-S"], capture_output=True, text=True, check=True)
    body: dict[str, Any] = json.loads(answer.stdout)
    return body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty place to work in, but for the shop's files."""
    shutil.copytree(ROOT / SHOP, tmp_path / SHOP)
    return tmp_path


class Job:
    """What `make run` runs, in its own process group, as a terminal starts it."""

    def __init__(self, folder: Path, command: str) -> None:
        self.port = free_port()
        self.output = folder / "output"
        self.started = time.monotonic()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                from_make(command, self.port),
                cwd=folder,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        reap(self.process.pid)

    def wait_answer(self) -> None:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() - self.started < READY_WITHIN_S, self.output.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=LONG_S) == 0


@pytest.fixture
def jobs(folder: Path) -> Iterator[list[Job]]:
    jobs: list[Job] = []
    yield jobs
    for job in jobs:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
    store = store_pid(folder)
    if store is not None and alive(store):
        os.kill(store, signal.SIGKILL)


def store_pid(folder: Path) -> int | None:
    try:
        return int((folder / STATE / "valkey.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def nothing_is_left(job: Job, store: int) -> bool:
    """No process of the job's group, no store, nothing that listens."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, 0)
        return False
    with socket.socket() as probe:
        listens = probe.connect_ex(("127.0.0.1", job.port)) == 0
    return not listens and not alive(store)


@pytest.mark.slow
@pytest.mark.timeout(2 * READY_WITHIN_S)
@pytest.mark.skipif(not (shutil.which("make") and shutil.which("curl")), reason="make or curl")
def test_from_a_shops_files_to_answers_and_again(folder: Path, jobs: list[Job]) -> None:
    check, guessed, meant, *asked = walk()
    checked = tim4rec(check, folder)
    assert checked.returncode == 1, checked.stderr
    assert "user 'K1999' has 800 interactions" in checked.stdout
    refused = subprocess.run(
        from_make(guessed, free_port()),
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert variables(refused.stderr.partition("if it is meant so: ")[2]) == variables(meant)
    assert not (folder / "artefacts").exists()

    meant += " RECIPE=quick"
    jobs.append(Job(folder, meant))
    jobs[0].wait_answer()
    store = store_pid(folder)
    assert store is not None
    assert alive(store)
    first, posted, cheap = (curl(command, jobs[0].port) for command in asked)
    assert first["source"] == "model", "the service knows the shop's customers"
    assert first["version"] > 0
    assert len(first["items"]) == 3
    for item in first["items"]:
        assert set(item["attributes"]) == {"price_eur", "stock"}
        assert "\ufffd" not in item["title"]
    assert posted["status"] == "applied"
    assert cheap["version"] == first["version"] + 1
    assert cheap["items"]
    assert "warnings" not in cheap
    said = jobs[0].output.read_text()
    assert "recent popularity" in said
    assert "what is served joins the model and such counts" in said
    assert f"Ready on http://127.0.0.1:{jobs[0].port}" in said
    assert "Traceback" not in said
    pasted = next(line for line in said.splitlines() if "/recommend?user_id=K" in line)
    assert curl(pasted.strip(), jobs[0].port)["source"] == "model"
    written = (folder / "artefacts" / "shop" / "model.safetensors").stat().st_mtime_ns
    jobs[0].stop()
    assert nothing_is_left(jobs[0], store)

    log = folder / SHOP / "interactions.csv"
    with log.open("ab") as file:
        file.write(b"2026-08-20 10:00:00 UTC; K1007; 00043; view\r\n")
    jobs.append(Job(folder, meant))
    jobs[1].wait_answer()
    said = jobs[1].output.read_text()
    assert "tim4rec warm" not in said, "nothing is done anew"
    assert (folder / "artefacts" / "shop" / "model.safetensors").stat().st_mtime_ns == written
    again = curl(asked[0], jobs[1].port)
    assert (again["version"], again["model"]) == (cheap["version"], first["model"])
    offered = next(line for line in said.splitlines() if "--overlap" in line)
    taken_in = tim4rec(offered.strip(), folder)
    assert "1 interactions written" in taken_in.stdout, taken_in.stderr
    assert curl(asked[0], jobs[1].port)["version"] == cheap["version"] + 1
    store = store_pid(folder)
    assert store is not None
    jobs[1].stop()
    assert nothing_is_left(jobs[1], store)

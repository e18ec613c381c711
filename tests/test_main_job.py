"""The main job as a newcomer runs it, on a small log: `python -m cli.run` from log to answers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.reaper import reap
from tests.service.processes import alive
from tests.training.logs import chain_log
from tests.waited import LONG_S

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty place to work in, but for a log and an item table."""
    data = tmp_path / "shop"
    data.mkdir()
    log = chain_log(users=40, length=18, items=20).frame
    log.select("user_id", "item_id", timestamp="time_ms").write_csv(data / "interactions.csv")
    items = [f"i{n:03},Title {n}" for n in range(20)]
    (data / "items.csv").write_text("\n".join(["item_id,title", *items, ""]))
    return tmp_path


class Job:
    """`python -m cli.run` in its own process group, as a terminal starts it."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.output = folder / "output"
        self.started = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.run", "--port", str(self.port), "--data", "shop",
                 "--device", "cpu"],
                cwd=folder,
                env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        reap(self.process.pid)

    def wait_answer(self) -> None:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() - self.started < 150, self.output.read_text()
            time.sleep(0.05)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

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
        return int((folder / "state-shop" / "valkey.pid").read_text())
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
def test_from_a_log_to_answers_and_again(folder: Path, jobs: list[Job]) -> None:
    jobs.append(Job(folder))
    jobs[0].wait_answer()
    store = store_pid(folder)
    assert store is not None
    assert alive(store)
    with jobs[0].client() as client:
        seen = [f"i{n:03}" for n in range(6)]
        for item in seen:
            body = {"user_id": "me", "item_id": item}
            answer = client.post("/interactions", json=body)
            assert answer.json()["status"] == "applied", answer.text
        first = client.get("/recommend", params={"user_id": "me", "k": 5}).json()
        assert first["source"] == "model"
        assert first["version"] == 6
        # Its users walk a ring, one or two places at a time: what comes next can be learnt.
        assert {item["item_id"] for item in first["items"]} & {"i006", "i007"}
        assert all(re.fullmatch(r"Title \d+", item["title"]) for item in first["items"])
        assert client.get("/docs").status_code == 200
    said = jobs[0].output.read_text()
    assert "tim4rec train" in said
    assert f"Ready on http://127.0.0.1:{jobs[0].port}" in said
    assert "Traceback" not in said
    written = (folder / "artefacts" / "shop" / "model.safetensors").stat().st_mtime_ns
    jobs[0].stop()
    assert nothing_is_left(jobs[0], store)

    jobs.append(Job(folder))
    jobs[1].wait_answer()
    assert "tim4rec train" not in jobs[1].output.read_text()
    assert (folder / "artefacts" / "shop" / "model.safetensors").stat().st_mtime_ns == written
    with jobs[1].client() as client:
        again = client.get("/recommend", params={"user_id": "me", "k": 5}).json()
    assert again["version"] == 6
    assert again["model"] == first["model"]
    assert [i["item_id"] for i in again["items"]] == [i["item_id"] for i in first["items"]]
    store = store_pid(folder)
    assert store is not None
    jobs[1].stop()
    assert nothing_is_left(jobs[1], store)

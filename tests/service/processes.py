"""The service as real processes, a small artefact for them, and the scores that are right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import torch

from model import ModelConfig, TiM4Rec
from model.artefact import Artefact, load_artefact, save_artefact
from model.items import Items
from model.times import parse_time
from service.app import create_app
from service.settings import Settings
from tests.forked import Forked
from tests.ports import free_port
from tests.reaper import reap
from tests.waited import LONG_S, PATIENT_S

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
BASE_MS = 1_700_000_000_000
READY_WITHIN_S = 200  # importing torch takes seconds, and much longer on a busy machine


def make_artefact(folder: Path, items: Sequence[str], seed: int = 0) -> Artefact:
    """A small request-time model with weights at random, far enough apart to tell items apart."""
    torch.manual_seed(seed)
    config = ModelConfig(n_items=len(items), d_model=16, head_dim=8, d_state=4, dropout=0.0)
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.item_embedding.weight[0] = 0
    popularity = np.random.default_rng(seed).permutation(len(items)) + 1
    titles = [f"Title of {item}" if place % 3 else None for place, item in enumerate(items)]
    save_artefact(folder, model, Items(list(items), popularity, titles), {}, "a test")
    return load_artefact(folder)


def offline_scores(
    artefact: Artefact, events: Iterable[tuple[str, int]], at_ms: int
) -> dict[str, float]:
    """Each item's score for a request at `at_ms`, from the whole history in one parallel pass."""
    index = {item: i + 1 for i, item in enumerate(artefact.items.ids)}
    known = [(index[item], ms) for item, ms in events if item in index]
    model = artefact.model
    items, times = torch.tensor(known).T[:, None]
    with torch.inference_mode():
        state = model.prefill(items, times, torch.tensor([len(known)]), model.new_state(1))
        scores = model.scores(model.query(state, torch.tensor([at_ms])))[0]
    return {item: float(scores[i]) for i, item in enumerate(artefact.scored_items.ids, 1)}


def popular(artefact: Artefact) -> list[str]:
    order = np.argsort(-artefact.items.popularity, kind="stable")
    return [artefact.items.ids[place] for place in order]


def check_answer(
    answer: dict[str, Any], scores: dict[str, float], k: int, without: Iterable[str] = ()
) -> None:
    """The answer holds the `k` best of `scores`, to 1e-4, in order, and none of `without`."""
    left = {item: score for item, score in scores.items() if item not in set(without)}
    assert answer["source"] == "model"
    found = [item["item_id"] for item in answer["items"]]
    given = [item["score"] for item in answer["items"]]
    assert len(set(found)) == len(found) == min(k, len(left))
    assert given == sorted(given, reverse=True)
    np.testing.assert_allclose(given, [left[item] for item in found], atol=1e-4)
    np.testing.assert_allclose(given, sorted(left.values(), reverse=True)[:k], atol=1e-4)


def user_path(user_id: str) -> str:
    # Clients resolve "." and ".." themselves.
    return f"/users/{quote(user_id, safe='').replace('.', '%2E')}"


def history(client: httpx.Client, user_id: str, limit: int = 10_000) -> list[dict[str, Any]]:
    """All of a user's events as the service exports them, page by page."""
    events: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        query = {"after": after, "limit": limit}
        page = client.get(f"{user_path(user_id)}/history", params=query)
        if page.status_code == 404:
            return []
        page.raise_for_status()
        events += page.json()["events"]
        after = page.json()["next"]
    return events


def pairs(events: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """What a model takes of exported events: items and times in effect, ms."""
    return [(event["item_id"], parse_time(event["timestamp"])) for event in events]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A container without an init keeps dead orphans as zombies.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()


class Service:
    """`tim4rec serve` in a process group of its own; its output goes to the file `output`.

    Args:
        fresh: starts an interpreter of its own, as a user does; else one is forked that has
            imported the application already.
    """

    def __init__(
        self,
        artefact: Path,
        output: Path,
        *arguments: str,
        fresh: bool = False,
        **settings: object,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = output
        self._command = [
            sys.executable, "-m", "cli.main", "serve", str(artefact), "--port", str(self.port),
            *arguments,
        ]  # fmt: skip
        self._fresh = fresh
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
        # What a killed service can't remove stays in a folder that the test run removes.
        settings = {"store_timeout_s": PATIENT_S, "TMPDIR": output.parent} | settings
        self._environment |= {
            name if name.isupper() else f"TIM4REC_{name.upper()}": str(value)
            for name, value in settings.items()
        }
        words = [*arguments, "--workers", self._environment.get("TIM4REC_WORKERS", "1")]
        self._workers = int(words[words.index("--workers") + 1])
        self._said_before = 0
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def start(self, *, wait: bool = True) -> None:
        with self.output.open("ab") as output:
            self._said_before = output.tell()
            if self._fresh:
                self.process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        if not self._fresh:
            self.process = Forked(self._command[3:], self._environment, self.output)
        reap(self.process.pid)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until requests are answered, and every worker has a model to answer them with."""
        assert self.process is not None
        until = time.monotonic() + READY_WITHIN_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self._opened() and httpx.get(f"{self.url}/readyz", timeout=5).is_success:
                    return
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, f"not ready: {self.said()}"
            time.sleep(0.05)

    def _opened(self) -> bool:
        said = self.output.read_bytes()[self._said_before :]
        return said.count(b"serving model ") >= self._workers

    def said(self) -> str:
        return self.output.read_text()

    def printed(self) -> list[str]:
        """Its lines that are no log."""
        return [line for line in self.said().splitlines() if not line.startswith("{")]

    def logged(self, **fields: object) -> list[dict[str, Any]]:
        """Its log's records that have these fields."""
        whole = self.said().split("\n")[:-1]  # the last one may be half written
        lines = [line for line in whole if line.startswith("{")]
        return [record for record in map(json.loads, lines) if fields.items() <= record.items()]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self) -> int:
        """SIGTERM, as an init or an orchestrator sends it; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=LONG_S)

    def kill(self) -> None:
        """kill -9 of every process of the service."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.asynccontextmanager
async def in_process(artefact: Path, store_url: str, **settings: Any) -> AsyncIterator[Any]:
    """A client of the app in this process, on a real store. Cheaper than another process."""
    settings = {"store_timeout_s": PATIENT_S} | settings
    app = create_app(Settings(artefact=artefact, redis_url=store_url, **settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.api.router.lifespan_context(app.api),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client

"""What the commands' tests share: the store of the service's tests, a small model, a service."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from cli.main import app
from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.items import Items
from tests.forked import Forked
from tests.reaper import reap
from tests.service.conftest import _shared_valkey, folder, patience, run, valkey
from tests.waited import PATIENT_S

__all__ = ["_shared_valkey", "folder", "patience", "run", "valkey"]

torch.set_num_threads(1)

ITEMS = [f"i{n}" for n in range(20)]
BASE_MS = 1_700_000_000_000

Write = Callable[[Sequence[tuple[str, str, object]]], Path]


def tim4rec(*arguments: object, **environment: str) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of a small model with random weights that knows ITEMS."""
    torch.manual_seed(0)
    config = ModelConfig(n_items=len(ITEMS), d_model=16, head_dim=4, d_state=4, dropout=0.0)
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("artefact") / "model"
    save_artefact(path, model, Items(ITEMS, np.arange(len(ITEMS), 0, -1)), {}, "")
    return path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as log.csv; always to the same name."""

    def written(rows: Sequence[tuple[str, str, object]]) -> Path:
        path = tmp_path / "log.csv"
        lines = ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return written


class Service:
    """`tim4rec serve` as a process of its own."""

    def __init__(self, model: Path, store_url: str, **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = ["serve", str(model), "--port", str(self.port), "--redis", store_url]
        settings = {"store_timeout_s": str(PATIENT_S)} | settings
        self._environment = os.environ | {f"TIM4REC_{k.upper()}": v for k, v in settings.items()}
        self.process: Forked | None = None

    def start(self) -> None:
        self.process = Forked(self._arguments, self._environment, Path(os.devnull))
        reap(self.process.pid)

    def wait_ready(self) -> None:
        until = time.monotonic() + 90
        while True:
            assert self.process is not None
            assert self.process.poll() is None, "the service ended"
            try:
                if httpx.get(f"{self.url}/readyz").is_success:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, "the service did not become ready"
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=30)


@contextmanager
def serving(model: Path, store_url: str, **settings: str) -> Iterator[Service]:
    service = Service(model, store_url, **settings)
    service.start()
    try:
        service.wait_ready()
        yield service
    finally:
        service.end(signal.SIGINT)

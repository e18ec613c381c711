"""A learner as a process of its own, with a real store, and commands that are played."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from learning.journal import FolderJournal
from model.artefact import Artefact
from model.folder_store import FolderStore
from model.journal import Entry
from model.times import iso
from tests.forked import Forked
from tests.learning import played
from tests.learning.admin_server import KEY, AdminServer
from tests.reaper import reap
from tests.service.conftest import ValkeyServer, _shared_valkey, folder, patience, run, valkey
from tests.service.processes import make_artefact
from tests.waited import LONG_S

__all__ = ["_shared_valkey", "folder", "patience", "run", "valkey"]

BASE_MS = 1_700_000_000_000
EVENTS, KNOWN = 2000, 1000
"""Of the log, and of these those that the incumbent was trained on; one each second."""


class World:
    """A service that serves the model `first`, a log, and what a learner needs.

    Attributes:
        models: the folder of models.
        work: the learner's folder.
    played: what the played commands make of.
    """

    def __init__(self, folder: Path, store: ValkeyServer, admin: AdminServer) -> None:
        self.models, self.work, self.played = folder / "models", folder / "work", folder / "played"
        self.admin, self._store, self._folder = admin, store, folder
        self._runs = 0
        for seed in range(8):
            make_artefact(self.played / "artefacts" / f"a{seed}", ["a", "b"], seed=seed)
        self.publish("first", 99, KNOWN - 1)
        admin.base, admin.version = "first", 1
        log = self.played / "log"
        log.mkdir()
        times = [BASE_MS + 1000 * place for place in range(EVENTS)]
        pl.DataFrame({"timestamp": times}).write_parquet(log / "part-0.parquet")
        (log / "manifest.json").write_text("{}")
        (log / "newest").write_text(iso(times[-1]))

    def publish(self, name: str, seed: int, newest: int) -> Artefact:
        """A model in the folder, trained until the event of this number."""
        made = make_artefact(self.models / name, ["a", "b"], seed=seed)
        until = json.dumps({"until": iso(BASE_MS + 1000 * newest)})
        (made.folder / "metrics.json").write_text(until)
        return made

    def start(self, *arguments: object, **environment: object) -> tuple[Forked, Path]:
        """`tim4rec learn` with these arguments; the process, and the file of what it says."""
        self._runs += 1
        output = self._folder / f"output{self._runs}"
        own = {
            "TIM4REC_LEARN_MODELS": self.models, "TIM4REC_LEARN_WORK": self.work,
            "TIM4REC_LEARN_SERVICE": self.admin.url, "TIM4REC_ADMIN_KEYS": KEY,
            "TIM4REC_LEARN_COMMAND": shlex.join([sys.executable, played.__file__]),
            "TIM4REC_LEARN_SCRATCH_EVERY": "0", "TIM4REC_LEARN_LEAST_EVENTS": 100,
            "TIM4REC_LEARN_LEAST_JUDGED": 10, "TIM4REC_REDIS_URL": self._store.url,
            "TIM4REC_LEARN_LOOK": "0.1s", "TIM4REC_LOG_FORMAT": "text",
            "PLAYED_FOLDER": self.played,
        }  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
        given = clean | {name: str(value) for name, value in (own | environment).items()}
        process = Forked(["learn", *map(str, arguments)], given, output)
        reap(process.pid)
        return process, output

    def learn(self, *arguments: object, **environment: object) -> tuple[int, str]:
        """The same to its end: the exit status, and what it said."""
        process, output = self.start(*arguments, **environment)
        return process.wait(LONG_S), output.read_text()

    def journal(self) -> list[Entry]:
        return FolderJournal(self.models).entries()

    def told(self) -> list[tuple[str, str | None]]:
        """What the journal says of which model, without the time in its name."""
        return [(one.what, one.model and one.model.split("-")[-2]) for one in self.journal()]

    def calls(self) -> list[list[str]]:
        """The words of each command that was run."""
        return [json.loads(line) for line in (self.played / "calls").read_text().splitlines()]

    def called(self, name: str) -> list[list[str]]:
        return [words for words in self.calls() if words[0] == name]

    def published(self) -> list[str]:
        """Without what a publishing that was killed has left."""
        return sorted(FolderStore(self.models).names())


@pytest.fixture
def admin() -> Iterator[AdminServer]:
    with AdminServer() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, valkey: ValkeyServer, admin: AdminServer) -> World:
    return World(tmp_path, valkey, admin)


def option(words: list[str], name: str) -> Any:
    return played.after(words, name)

"""The service that is attacked, and what came of an attack."""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import running
from benchmarks.hostile.wire import Answer, Connection
from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.items import Items
from service.settings import Settings

KEY, ADMIN_KEY, NO_KEY = "attacks-key", "attacks-admin-key", ""
MAX_BODY: int = Settings.model_fields["max_body_bytes"].default
USERS, LENGTHS = 50, (5, 40)
RECORDS = 2000

Kind = Literal["closed", "open", "late"]
"""With keys, without, and with keys but so impatient that a little load is too much."""
ONCE = (
    "/livez", "/openapi.json", "/popular", "/items?limit=5&q=title", "/users/user-0/history",
    "/recommend?user_id=user-0&explain=true", "/items/i0/similar", "/recommend?user_id=user-0&k=0",
)  # fmt: skip
QUIET = ("--log-level", "error")
OPTIONS: dict[Kind, Sequence[str]] = {
    "closed": ("--api-keys", KEY, "--admin-keys", ADMIN_KEY),
    "open": (),
    "late": (
        "--api-keys", KEY, "--admin-keys", ADMIN_KEY, "--max-batch", "4", "--max-wait-s", "0.002",
    ),
}  # fmt: skip


@dataclass
class Found:
    """What an attack came to.

    statuses: of the answers, or `none`. bytes, seconds: of the largest and the slowest of them.
    faults: what was not as promised.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def took(self, answer: Answer | None, seconds: float = 0.0) -> None:
        self.statuses["none" if answer is None else str(answer.status)] += 1
        if answer is not None:
            self.bytes = max(self.bytes, len(answer.body))
        self.seconds = max(self.seconds, seconds)

    def expect(self, holds: object, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


@dataclass
class Target:
    """A service on loopback. `key`, `admin_key`: None: it has none. `stop`: nothing more is sent
    once it is set."""

    port: int
    key: str | None
    admin_key: str | None
    stop: threading.Event = field(default_factory=threading.Event)

    def connect(self, *, deaf: bool = False) -> Connection:
        return Connection(self.port, self.stop, deaf=deaf)

    def head(self, method: str, path: str, *fields: str, key: str | None = None) -> bytes:
        """A request's head; `key` None: a good one."""
        shown = (self.key or "") if key is None else key
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"X-API-Key: {shown}"] if shown else []
        return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1")

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *fields: str,
        key: str | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """A whole request."""
        if body is None:
            return self.head(method, path, *fields, key=key)
        own = f"Content-Type: {content_type}", f"Content-Length: {len(body)}"
        return self.head(method, path, *own, *fields, key=key) + body

    def ask(
        self, method: str, path: str, body: bytes | None = None, *fields: str, **options: Any
    ) -> tuple[Answer | None, float]:
        """The answer to a request over a connection of its own, and the seconds it took."""
        return self.exchange(self.request(method, path, body, *fields, **options), method)

    def exchange(self, request: bytes, method: str = "GET") -> tuple[Answer | None, float]:
        """`ask`, for bytes."""
        began = time.monotonic()
        with self.connect() as connection:
            connection.send(request)
            connection.wait(connection.has_answers(1, method))
            answered = connection.answers(method)
        return (answered[0] if answered else None), time.monotonic() - began

    def post(self, path: str, body: object) -> tuple[Answer | None, float]:
        return self.ask("POST", path, json.dumps(body).encode())

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        answer, _ = self.ask("GET", "/openapi.json")
        assert answer is not None
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def warm(self) -> None:
        """Has everything happen that happens once: what is read at first use, what is compiled."""
        user = {"user_id": "user-0"}
        item = {"item_id": "i0"}
        for _ in range(3):
            for path in ONCE:
                self.ask("GET", path)
            self.post("/interactions", user | item)
            self.post("/interactions/batch", {"interactions": [user | item] * 1000})
            self.post("/rank", user | {"item_ids": [f"i{n}" for n in range(1000)]})
            self.post("/recommend/session", {"events": [item] * 100})
            options = {"filter": 'brand = "b1" or title < "a"', "diversity": 0.5, "paged": True}
            self.post("/recommend", user | options | {"k": 1000})


@dataclass
class Grounds:
    """A model with random weights and a catalogue of its own, and a store with histories."""

    artefact: Path
    url: str
    names: Sequence[str]

    @contextmanager
    def service(self, kind: Kind) -> Iterator[tuple[Target, running.Server]]:
        with running.service(self.artefact, self.url, *QUIET, *OPTIONS[kind]) as server:
            key, admin_key = (None, None) if kind == "open" else (KEY, ADMIN_KEY)
            target = Target(server.port, key, admin_key)
            self._describe(target)
            target.warm()
            yield target, server

    def _describe(self, target: Target) -> None:
        names = itertools.islice(self.names, RECORDS)
        for some in iter(lambda: list(itertools.islice(names, 500)), []):
            records = [
                {"item_id": name, "attributes": {"brand": f"b{place}", "price": place}}
                for place, name in enumerate(some)
            ]
            target.post("/items/batch", {"items": records})


@contextmanager
def grounds(items: int) -> Iterator[Grounds]:
    """With so many items."""
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as scratch, running.store() as url:
        torch.manual_seed(0)
        model = TiM4Rec(ModelConfig(n_items=items)).eval()
        names = [f"i{place}" for place in range(items)]
        titles: list[str | None] = [f"Title of {name}" for name in names]
        vocabulary = Items(names, np.arange(items, 0, -1), titles)
        save_artefact(Path(scratch, "model"), model, vocabulary, {}, "for benchmarks.attacks")
        running.fill(url, names, USERS, LENGTHS)
        yield Grounds(Path(scratch, "model"), url, names)

"""Models switched under load: two processes of a service, and no request that notices."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from model.artefact import Artefact
from model.description import WEIGHTS
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    history,
    make_artefact,
    offline_scores,
    pairs,
)
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(40)]
USERS = [f"user{n}" for n in range(12)]
AT_MS = BASE_MS + 10**9
ADMIN = {"X-API-Key": "of the admin"}
WORKERS = 2


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Artefact]:
    folder = tmp_path / "models"
    return {
        "one": make_artefact(folder / "one", ITEMS),
        "two": make_artefact(folder / "two", [*ITEMS[::-1], "new"], seed=1),
    }


@pytest.fixture
def service(models: dict[str, Artefact], tmp_path: Path) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    store = ValkeyServer(folder)
    store.start()
    one = models["one"].folder
    found = Service(
        one, tmp_path / "output", "--workers", str(WORKERS), "--redis", store.url,
        models_dir=one.parent, admin_keys=ADMIN["X-API-Key"], model_poll_s=0.1, max_batch=8,
        pool_capacity=64, snapshot_every=8,
    )  # fmt: skip
    try:
        found.start()
        yield found
    finally:
        found.kill()
        store.kill()
        shutil.rmtree(folder)


class Load:
    """Writers and readers who open a connection for every request, so that any worker gets it."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.AsyncClient(base_url=url, timeout=60, limits=limits)
        self.failed: list[str] = []
        self.by_model: Counter[str] = Counter()
        self.posted = 0
        self._going = True
        self._rng, self._name = random.Random(0), uuid4().hex

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(own)) for own in range(6)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)
        await self.client.aclose()

    async def more(self, requests: int) -> None:
        """Until so many more were posted, and answered."""
        enough = self.posted + requests
        async with asyncio.timeout(LONG_S):
            while self.posted < enough:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _ask(self, own: int) -> None:
        number = 0
        while self._going:
            user, number = self._rng.choice(USERS), number + 1
            body = {"user_id": user, "item_id": self._rng.choice([*ITEMS, "new"])}
            body["event_id"] = f"{self._name}-{own}-{number}"
            await self._sent("POST", "/interactions", json=body)
            self.posted += 1
            found = await self._sent("GET", "/recommend", params={"user_id": user, "k": 5})
            self.by_model[found.json()["model"]] += 1

    async def _sent(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = await self.client.request(method, path, **more)
        if answer.status_code != 200:
            self.failed.append(answer.text)
        return answer


async def taken(client: httpx.AsyncClient, version: int) -> None:
    async with asyncio.timeout(LONG_S):
        while True:
            found = (await client.get("/admin/model", headers=ADMIN)).json()
            if [one["version"] for one in found["processes"]] == [version] * WORKERS:
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
def test_no_request_notices_a_switch(
    service: Service, models: dict[str, Artefact], run: Any
) -> None:
    async def choose(client: httpx.AsyncClient, **body: object) -> int:
        answer = await client.post("/admin/model", json=body, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["version"])

    async def check(client: httpx.AsyncClient, version: int, *names: str) -> dict[str, str]:
        """Every user's answer has the scores of one of the models offline, at every worker."""
        found: dict[str, str] = {}
        by_identity = {models[name].identity: name for name in names}
        await taken(client, version)
        with service.client() as exporting:
            for user in USERS:
                events = pairs(history(exporting, user))
                at = max([AT_MS, *(ms for _, ms in events)])
                for _ in range(3):
                    query = {"user_id": user, "k": 50, "at": at / 1000, "exclude_seen": False}
                    answer = (await client.get("/recommend", params=query)).json()
                    name = by_identity[answer["model"]]
                    assert found.setdefault(user, name) == name, "workers split differently"
                    check_answer(answer, offline_scores(models[name], events, at), 50)
        return found

    async def go() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
            for user in USERS:
                body = {"user_id": user, "item_id": "i0", "timestamp": BASE_MS}
                assert (await client.post("/interactions", json=body)).status_code == 200
            for body in (
                {"model": "two"}, {"model": "one"}, {"model": "two", "share": 0.5},
                {"model": "two"},
            ):  # fmt: skip
                async with Load(service.url) as load:
                    await load.more(10)
                    version = await choose(client, **body)
                    await taken(client, version)
                    await load.more(20)
                assert load.failed == []
                names = ("one", "two") if "share" in body else (str(body["model"]),)
                found = await check(client, version, *names)
                assert set(found.values()) == set(names)
                assert load.by_model.keys() <= {model.identity for model in models.values()}
            # A model that is damaged where it is to be opened: nothing changes.
            one = models["one"]
            weights = (one.folder / WEIGHTS).read_bytes()
            async with Load(service.url) as load:
                version = await choose(client, model="one")
                (one.folder / WEIGHTS).write_bytes(weights[:-1] + b"!")
                await asyncio.sleep(0.5)
            assert load.failed == []

    run(go())
    assert "Traceback" not in service.said()

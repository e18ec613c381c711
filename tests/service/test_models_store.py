"""Models from an object store: fetched, switched to, and served on while it is away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from model.artefact import CONFIG, Artefact
from model.artefact_store import open_artefact_store
from service.models import deployer
from service.models.model_folder import ModelFolder
from service.models.traffic_split import Variant
from service.settings import Settings
from tests.s3_server import BUCKET, SECRET, S3Server
from tests.service.conftest import ValkeyServer
from tests.service.processes import (
    BASE_MS,
    Service,
    check_answer,
    in_process,
    make_artefact,
    offline_scores,
)
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(30)]
PLACE = f"s3://{BUCKET}/models"
ADMIN = {"X-API-Key": "of the admin"}
AT_MS = BASE_MS + 10**9
EVENTS = [(item, BASE_MS + n * 60_000) for n, item in enumerate(ITEMS[3:9])]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.make_bucket()
    return server


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Artefact]:
    return {
        name: make_artefact(tmp_path / "trained" / name, ITEMS, seed)
        for seed, name in enumerate(("one", "two", "three"))
    }


def published(models: dict[str, Artefact], *names: str) -> None:
    for name in names:
        open_artefact_store(PLACE).publish(models[name].folder, name)


@asynccontextmanager
async def served(url: str, data_dir: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    options = {"model_poll_s": 0.02, "max_batch": 8, "pool_capacity": 64} | options
    options |= {"models_dir": PLACE, "admin_keys": (SecretStr("of the admin"),)}
    artefact = options.pop("artefact", f"{PLACE}/one")
    async with in_process(artefact, url, data_dir=data_dir, **options) as client:
        yield client


async def post(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post("/admin/model", json={"model": model}, headers=ADMIN)


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/admin/model", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until(client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool]) -> None:
    services = client._transport.app.api.state.services  # type: ignore[attr-defined]
    async with asyncio.timeout(LONG_S):
        while True:
            if holds(services.deployer.serving()):
                return
            await asyncio.sleep(0.02)


async def check(client: httpx.AsyncClient, artefact: Artefact) -> None:
    query = {"user_id": "ann", "at": AT_MS, "k": 10, "exclude_seen": False}
    answer = (await client.get("/recommend", params=query)).json()
    assert answer["model"] == artefact.identity
    check_answer(answer, offline_scores(artefact, EVENTS, AT_MS), 10)


async def write(client: httpx.AsyncClient) -> None:
    for item, ms in EVENTS:
        body = {"user_id": "ann", "item_id": item, "timestamp": ms}
        assert (await client.post("/interactions", json=body)).status_code == 200


def fetched(data_dir: Path) -> set[str]:
    return {file.parent.name for file in (data_dir / "models").rglob(CONFIG)}


def test_an_empty_machine(
    s3: S3Server, models: dict[str, Artefact], valkey: ValkeyServer, tmp_path: Path, run: Any
) -> None:
    published(models, "one", "two")

    async def go() -> None:
        async with served(valkey.url, tmp_path / "data") as client:
            await write(client)
            await check(client, models["one"])
            found = await shown(client)
            assert found["available_fault"] is None
            assert found["available"] == [
                {"name": name, "identity": models[name].edition} for name in ("one", "two")
            ]
            (process,) = found["processes"]
            assert process["base"]["name"] == "one"
            assert fetched(tmp_path / "data") == {"one"}
            assert (await post(client, "two")).status_code == 200
            await until(client, lambda process: process["version"] == 1)
            await check(client, models["two"])
            assert fetched(tmp_path / "data") == {"one", "two"}
            for name in ("three", "..", "a/b", f"{PLACE}/one", str(models["two"].folder)):
                answer = await post(client, name)
                assert answer.status_code == 422, answer.text

    run(go())


def test_while_the_store_is_away(
    s3: S3Server,
    models: dict[str, Artefact],
    valkey: ValkeyServer,
    tmp_path: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What serves goes on, also in a process that starts; what was asked for comes later."""
    monkeypatch.setattr(deployer, "RETRY_EVERY_S", 0.1)
    published(models, "one", "two")

    async def go() -> None:
        async with served(valkey.url, tmp_path / "data") as client:
            await write(client)
            assert (await post(client, "two")).status_code == 200
            await until(client, lambda process: process["version"] == 1)
            await asyncio.to_thread(s3.kill)
            answer = await post(client, "one")
            assert answer.status_code == 503
            assert PLACE in answer.json()["detail"]
            found = await shown(client)
            assert found["available"] == []
            assert PLACE in found["available_fault"]
            await check(client, models["two"])
        # The command has fetched it before: no store is needed to start again.
        own = tmp_path / "data" / "models" / models["one"].edition / "one"
        async with served(valkey.url, tmp_path / "data", artefact=own) as client:
            await check(client, models["two"])
            registry = client._transport.app.api.state.services.deployer.registry  # type: ignore[attr-defined]
            split = await registry.read()
            chosen = split.promoted(Variant("three", models["three"].edition), 0)
            assert await registry.replace(split, chosen)
            await until(client, lambda process: PLACE in (process["fault"] or ""))
            await check(client, models["two"])
            await asyncio.to_thread(s3.start)
            await asyncio.to_thread(s3.make_bucket)
            await asyncio.to_thread(published, models, "three")
            await until(client, lambda process: process["fault"] is None)
            await check(client, models["three"])

    run(go())


def test_what_is_fetched_is_bounded(
    s3: S3Server, models: dict[str, Artefact], valkey: ValkeyServer, tmp_path: Path, run: Any
) -> None:
    more = {
        name: make_artefact(tmp_path / "trained" / name, ITEMS, 10 + n)
        for n, name in enumerate("abcde")
    }
    published(models, "one")
    published(more, *more)
    open_artefact_store(PLACE).fetch("one", tmp_path / "data" / "models")
    own = tmp_path / "data" / "models" / models["one"].edition / "one"

    async def go() -> None:
        async with served(valkey.url, tmp_path / "data", artefact=own) as client:
            for version, name in enumerate(more, 1):
                assert (await post(client, name)).status_code == 200
                await until(client, lambda process, version=version: process["version"] == version)
            assert fetched(tmp_path / "data") == {"one", "c", "d", "e"}
            assert (await client.delete("/admin/model", headers=ADMIN)).status_code == 200
            await until(client, lambda process: process["version"] == len(more) + 1)
            await write(client)
            await check(client, models["one"])

    run(go())


def test_a_process_is_there_while_it_fetches(
    s3: S3Server,
    models: dict[str, Artefact],
    valkey: ValkeyServer,
    tmp_path: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployer, "REPORT_EVERY_S", 0.05)
    published(models, "one", "two")
    arrived, find = threading.Event(), ModelFolder.find

    def slow(folder: ModelFolder, name: str, edition: str | None = None) -> Path:
        if edition is not None:  # not for the request, which asks for a name
            assert arrived.wait(LONG_S)
        return find(folder, name, edition)

    monkeypatch.setattr(ModelFolder, "find", slow)

    async def go() -> None:
        async with served(valkey.url, tmp_path / "data") as client:
            try:
                assert (await post(client, "two")).status_code == 200
                said = set[str]()
                async with asyncio.timeout(LONG_S):
                    while len(said) < 4:
                        for process in (await shown(client))["processes"]:
                            assert process["version"] == 0
                            said.add(process["said_at"])
            finally:
                arrived.set()
            await until(client, lambda process: process["version"] == 1)

    run(go())


@pytest.mark.slow
def test_a_real_service(
    s3: S3Server, models: dict[str, Artefact], valkey: ValkeyServer, tmp_path: Path
) -> None:
    published(models, "one")
    service = Service(
        f"{PLACE}/one", tmp_path / "output", workers=2, redis_url=valkey.url, models_dir=PLACE,
        data_dir=tmp_path / "data", log_level="debug",
    )  # fmt: skip
    try:
        service.start()
        with service.client() as client:
            assert client.get("/readyz").json()["model"] == models["one"].identity
        assert PLACE in service.said()
        assert SECRET not in service.said()
        assert service.stop() == 0
        s3.kill()
        service.start(wait=False)
        assert service.process is not None
        assert service.process.wait(timeout=LONG_S) == 1
        (line,) = [line for line in service.printed() if line.startswith("error: ")]
        assert PLACE in line
        assert SECRET not in service.said()
    finally:
        service.kill()
        s3.start()


def test_a_folder_is_never_pruned(models: dict[str, Artefact], tmp_path: Path) -> None:
    place = tmp_path / "data" / "models"
    for number in range(5):
        open_artefact_store(place).publish(models["one"].folder, f"{number:016x}")
    folder = ModelFolder(str(place), place)
    folder.prune(())
    assert len(folder.available()) == 5


def test_places_that_can_not_be_used(tmp_path: Path) -> None:
    for wrong in (f"s3://somebody:{SECRET}@{BUCKET}/models", f"s3://{BUCKET}?a={SECRET}", "no://x"):
        for given in ({"models_dir": wrong}, {"artefact": f"{wrong}/one"}):
            with pytest.raises(ValidationError) as refused:
                Settings(**{"artefact": "a"} | given)
            messages = [error["msg"] for error in refused.value.errors()]
            assert SECRET not in "".join(messages)
    with pytest.raises(ValidationError, match="is no folder"):
        Settings(artefact="a", models_dir=tmp_path / "nothing")

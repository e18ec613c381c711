"""A service that serves what is set at /admin/model: asked, in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from tests.service.processes import BASE_MS, in_process
from tests.waited import LONG_S

AT_MS = BASE_MS + 10**9
ADMIN = {"X-API-Key": "of the admin"}


@asynccontextmanager
async def served(folder: Path, url: str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    options = {"model_poll_s": 0.02, "max_batch": 8, "pool_capacity": 64} | options
    options |= {"models_dir": folder, "admin_keys": (SecretStr("of the admin"),)}
    async with in_process(folder / "one", url, **options) as client:
        yield client


async def choose(client: httpx.AsyncClient, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, **more}
    answer = await client.post("/admin/model", json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def base_of(name: str, identity: str, live: bool = True) -> dict[str, Any]:
    return {"name": name, "identity": identity, "live": live}


async def end(client: httpx.AsyncClient, trial: str) -> None:
    answer = await client.delete(f"/admin/model/trials/{trial}", headers=ADMIN)
    assert answer.status_code == 200, answer.text


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/admin/model", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until(client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool]) -> Any:
    async with asyncio.timeout(LONG_S):
        while True:
            found = await shown(client)
            if found["processes"] and all(map(holds, found["processes"])):
                return found
            await asyncio.sleep(0.02)


async def taken(client: httpx.AsyncClient, version: int) -> None:
    await until(client, lambda process: process["version"] == version)


async def write(client: httpx.AsyncClient, user: str, items: list[str]) -> list[tuple[str, int]]:
    events = [(item, BASE_MS + n * 60_000) for n, item in enumerate(items)]
    for item, ms in events:
        body = {"user_id": user, "item_id": item, "timestamp": ms}
        assert (await client.post("/interactions", json=body)).status_code == 200
    return events


async def get(client: httpx.AsyncClient, user: str, **query: Any) -> dict[str, Any]:
    answer = await client.get("/recommend", params={"user_id": user, "at": AT_MS, **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def counted(client: httpx.AsyncClient, sample: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next((line for line in lines if line.startswith(sample)), "0").split()[-1])

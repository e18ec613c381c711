"""Models chosen, switched and tried side by side while the service runs: its logic, in process."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from model import artefact as artefacts
from model.artefact import CONFIG, Artefact
from model.config import ModelConfig
from model.description import ITEMS as TABLE
from model.description import WEIGHTS, identity_of
from service.models import deployer
from service.models.traffic_split import TrafficSplit, Variant
from tests.model.mixtures import some_mixture
from tests.service.conftest import ValkeyServer
from tests.service.model_service import (
    ADMIN,
    AT_MS,
    base_of,
    choose,
    counted,
    end,
    get,
    served,
    shown,
    taken,
    until,
    write,
)
from tests.service.processes import BASE_MS, check_answer, in_process, make_artefact, offline_scores
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(30)]
USERS = [f"user{n}" for n in range(16)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def one(folder: Path) -> Artefact:
    return make_artefact(folder / "one", ITEMS)


@pytest.fixture
def two(folder: Path) -> Artefact:
    return make_artefact(folder / "two", [*ITEMS[5:], "new"], seed=1)


async def check(client: httpx.AsyncClient, user: str, events: Any, artefact: Artefact) -> None:
    answer = await get(client, user, k=40, exclude_seen=False)
    assert answer["model"] == artefact.identity
    check_answer(answer, offline_scores(artefact, events, AT_MS), 40)


def test_it_is_exported_until_when_models_were_trained(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    (one.folder / "metrics.json").write_text(json.dumps({"until": "2026-01-02T03:04:05.678Z"}))
    (two.folder / "metrics.json").write_text(json.dumps({"until": "nonsense"}))

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            await choose(client, "two")
            await taken(client, 1)
            name = "tim4rec_model_until_timestamp_seconds"
            assert await counted(client, f'{name}{{edition="{one.edition}"}}') == 1767323045.678
            assert await counted(client, f'{name}{{edition="{two.edition}"}}') == 0  # not there

    run(go())


def test_another_model_takes_over(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        async with served(folder, valkey.url) as client:
            events = await write(client, "ann", ITEMS[3:12])
            await check(client, "ann", events, one)
            said = await choose(client, "two")
            assert (said["version"], said["base"]) == (1, base_of("two", two.identity))
            await taken(client, 1)
            await check(client, "ann", events, two)
            assert (await client.get("/readyz")).json()["model"] == two.identity
            similar = (await client.get("/items/new/similar")).json()
            assert similar["model"] == two.identity
            assert (await client.delete("/admin/model", headers=ADMIN)).json()["version"] == 2
            await taken(client, 2)
            await check(client, "ann", events, one)
        async with served(folder, valkey.url) as client:
            await choose(client, "two")
        async with served(folder, valkey.url) as client:  # started again: what is set
            await check(client, "ann", events, two)

    run(go())


def test_another_mixture_takes_over_and_keeps_the_states(
    folder: Path, one: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    artefacts.save_artefact(folder / "mixed", one.model, one.items, one.metrics, "", some_mixture())
    mixed = artefacts.load_artefact(folder / "mixed")

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            await write(client, "ann", ITEMS[3:12])
            said = await choose(client, "mixed")
            assert said["base"] == base_of("mixed", mixed.edition)
            assert mixed.edition != one.identity == mixed.identity
            await taken(client, 1)
            listed = (await shown(client))["available"]
            assert [m["identity"] for m in listed] == [mixed.edition, one.edition]
            assert (await client.get("/readyz")).json()["model"] == one.identity
            assert (await get(client, "ann"))["model"] == one.identity
            refused = await client.post(
                "/admin/model", json={"model": "mixed", "share": 0.5}, headers=ADMIN
            )
            assert refused.status_code == 422
            await choose(client, "one", share=0.5)
            await taken(client, 2)

    run(go())


def test_two_models_side_by_side(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        async with served(folder, valkey.url) as client:
            events = {user: await write(client, user, ITEMS[6:14]) for user in USERS}
            await choose(client, "two", share=0.5)
            await taken(client, 1)
            labels = {user: (await get(client, user))["model"] for user in USERS}
            assert set(labels.values()) == {one.identity, two.identity}
            for user, events_of in events.items():
                artefact = two if labels[user] == two.identity else one
                await check(client, user, events_of, artefact)
                known = await client.get(f"/users/{user}")
                assert known.json()["model"] == labels[user]
                body = {"user_id": user, "item_ids": ["i7", "new"]}
                ranked = (await client.post("/rank", json=body)).json()
                assert ranked["model"] == labels[user]
                assert {i["item_id"]: i["known"] for i in ranked["items"]}["new"] == (
                    artefact is two
                )
                body = {"user_id": user, "item_id": "new", "timestamp": BASE_MS + 10**6}
                answer = (await client.post("/interactions", json=body)).json()
                assert answer["status"] == ("applied" if artefact is two else "unknown_item")
            batch = [
                {"user_id": user, "item_id": "new", "timestamp": BASE_MS + 2 * 10**6}
                for user in USERS
            ]
            results = (
                await client.post("/interactions/batch", json={"interactions": batch})
            ).json()["results"]
            for user, result in zip(USERS, results, strict=True):
                known = labels[user] == two.identity
                assert result["status"] == ("applied" if known else "unknown_item")
            put = await client.put("/items/i7", json={"hidden": True})
            assert put.status_code == 200
            for user in USERS:  # both models' catalogues know at once
                assert "i7" not in [i["item_id"] for i in (await get(client, user, k=40))["items"]]
            await choose(client, "two", share=0.8)
            await taken(client, 2)
            for user in USERS:
                now = (await get(client, user))["model"]
                assert now == two.identity or labels[user] == one.identity, "moved back"
            await end(client, "two")
            await taken(client, 3)
            assert {(await get(client, user))["model"] for user in USERS} == {one.identity}

    run(go())


def test_what_can_not_be_served_changes_nothing(
    folder: Path,
    one: Artefact,
    two: Artefact,
    valkey: ValkeyServer,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployer, "RETRY_EVERY_S", 0.1)
    monkeypatch.setattr(deployer, "REPORT_EVERY_S", 0.0)

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            events = await write(client, "ann", ITEMS[3:12])
            weights = (folder / "two" / WEIGHTS).read_bytes()
            (folder / "two" / WEIGHTS).write_bytes(weights[:-1] + b"!")
            refused = await client.post("/admin/model", json={"model": "two"}, headers=ADMIN)
            assert refused.status_code == 422
            assert f"{WEIGHTS}: its hash is not the one" in refused.json()["detail"]
            assert (await shown(client))["version"] == 0
            # Sound where it was set, and damaged here.
            (folder / "two" / WEIGHTS).write_bytes(weights)
            services = client._transport.app.api.state.services  # type: ignore[attr-defined]
            active = await services.deployer.registry.read()
            (folder / "two" / WEIGHTS).write_bytes(weights[:-1] + b"!")
            variant = Variant("two", two.identity)
            assert await services.deployer.registry.replace(active, active.promoted(variant, 0))
            found = await until(client, lambda process: process["fault"] is not None)
            assert "its hash is not the one" in found["processes"][0]["fault"]
            assert found["processes"][0]["version"] == 0
            assert (await client.get("/readyz")).status_code == 200
            assert "tim4rec_model_behind 1.0" in (await client.get("/metrics")).text
            await check(client, "ann", events, one)
            # Mended: it takes over by itself.
            (folder / "two" / WEIGHTS).write_bytes(weights)
            await taken(client, 1)
            await check(client, "ann", events, two)
            assert (await shown(client))["processes"][0]["fault"] is None
            assert "tim4rec_model_behind 0.0" in (await client.get("/metrics")).text
            # Another model in the same folder is not the one that was set.
            shutil.rmtree(folder / "one")
            other = make_artefact(folder / "one", ITEMS, seed=7)
            active = await services.deployer.registry.read()
            variant = Variant("one", "of a model that was here before")
            assert await services.deployer.registry.replace(active, active.promoted(variant, 0))
            found = await until(client, lambda process: process["fault"] is not None)
            assert other.identity in found["processes"][0]["fault"]
        # A process that starts serves what it is given, rather than nothing.
        async with served(folder, valkey.url) as client:
            await check(client, "ann", events, other)

    run(go())


def spoilt(folder: Path) -> dict[str, str]:
    """Folders that look like `two` and can't be served, and what is said of each."""

    def spoil(name: str) -> Path:
        return Path(shutil.copytree(folder / "two", folder / name))

    def put(path: Path, **values: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    os.mkfifo(_without(spoil("fifo") / CONFIG))
    os.mkfifo(_without(spoil("fifo of weights") / WEIGHTS))
    _without(spoil("zeros") / TABLE).symlink_to("/dev/zero")
    _without(spoil("secret") / CONFIG).symlink_to("/etc/passwd")
    _without(spoil("folder") / CONFIG).mkdir()
    (spoil("deep") / CONFIG).write_text("[" * 50_000)
    os.truncate(spoil("long") / CONFIG, 1 << 40)
    os.truncate(spoil("sparse") / WEIGHTS, 1 << 40)
    put(spoil("digits") / CONFIG, repeat_bias="@")
    described = (folder / "digits" / CONFIG).read_text()
    (folder / "digits" / CONFIG).write_text(described.replace('"@"', "9" * 10_000))
    for name, values in (
        ("surrogate", {"titles": ["\ud800"] * 26}),
        ("floats", {"popularity": [0.5]}),
    ):
        put(spoil(name) / TABLE, **values)
        description = json.loads((folder / name / CONFIG).read_text())
        hashes = {file: artefacts._hash(folder / name / file) for file in (WEIGHTS, TABLE)}
        config = ModelConfig.from_dict(description["architecture"])
        identity = identity_of(config, 0.0, hashes)
        put(folder / name / CONFIG, hashes=hashes, identity=identity)
    return {
        "fifo": f"{CONFIG}: is a FIFO", "fifo of weights": f"{WEIGHTS}: is a FIFO",
        "zeros": "leads out of", "secret": "leads out of", "folder": f"{CONFIG}: is a folder",
        "deep": "nested too deeply", "long": "at most 65,536", "sparse": f"{WEIGHTS}: damaged",
        "digits": f"{CONFIG}: not readable", "surrogate": f"{TABLE}: items: title 1",
        "floats": f"{TABLE}: items: popularity 1",
    }  # fmt: skip


def _without(path: Path) -> Path:
    path.unlink()
    return path


def test_a_model_that_nobody_should_trust_is_an_error_and_the_old_one_serves_on(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    kinds = spoilt(folder)

    async def go() -> None:
        async with served(folder, valkey.url) as client, asyncio.timeout(LONG_S):
            events = await write(client, "ann", ITEMS[3:12])
            for name, said in kinds.items():
                body = {"model": name}
                refused, _ = await asyncio.gather(
                    client.post("/admin/model", json=body, headers=ADMIN),
                    check(client, "ann", events, one),
                )
                assert refused.status_code == 422, name
                detail = refused.json()["detail"]
                assert said in detail
                assert detail.isprintable()
                assert len(detail) < 1000
            found = await shown(client)
            assert found["version"] == 0
            # What is listed is what they claim; what claims nothing is not.
            names = {listed["name"] for listed in found["available"]}
            assert names == {"one", "two", "fifo of weights", "sparse", "surrogate", "floats"}
            # Set past this process, they are followed by nobody.
            services = client._transport.app.api.state.services  # type: ignore[attr-defined]
            for name in ("fifo", "zeros", "deep"):
                active = await services.deployer.registry.read()
                variant = Variant(name, two.identity)
                assert await services.deployer.registry.replace(active, active.promoted(variant, 0))
                await until(
                    client, lambda process, variant=name: variant in (process["fault"] or "")
                )
                await check(client, "ann", events, one)
            await choose(client, "two")
            await until(client, lambda process: process["fault"] is None)
            await check(client, "ann", events, two)

    run(go())


def test_who_may_choose_what(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    (folder.parent / "outside").symlink_to(folder / "one")
    (folder / "out").symlink_to(folder.parent)
    (folder / "empty").mkdir()

    async def post(client: httpx.AsyncClient, body: Any, **more: Any) -> httpx.Response:
        return await client.post("/admin/model", json=body, **({"headers": ADMIN} | more))

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            assert (await post(client, {"model": "two"}, headers={})).status_code == 401
            for body in (
                *({"model": name} for name in ("", ".", "..", "../outside", "a\0b", "x" * 300)),
                *({"model": name} for name in ("out", "empty", "nothing", str(folder / "two"))),
                {"model": "two", "share": 0}, {"model": "two", "share": 1.5},
                {"model": "one", "share": 0.5}, {"model": "two", "shares": 1}, {}, [],
            ):  # fmt: skip
                answer = await post(client, body)
                assert answer.status_code == 422, (body, answer.text)
                assert answer.json()["errors"]
            before = await shown(client)
            assert before["version"] == 0
            assert before["available"] == [
                {"name": "one", "identity": one.identity},
                {"name": "two", "identity": two.identity},
            ]
            await choose(client, "two", share=0.2)
            services = client._transport.app.api.state.services  # type: ignore[attr-defined]
            stale = TrafficSplit()
            variant = Variant("two", two.identity)
            assert not await services.deployer.registry.replace(stale, stale.promoted(variant, 0))
        async with in_process(folder / "one", valkey.url) as client:
            assert (await post(client, {"model": "two"})).status_code == 403
        keys = {"admin_keys": (SecretStr("of the admin"),)}
        async with in_process(folder / "one", valkey.url, **keys) as client:
            answer = await post(client, {"model": "two"})
            assert answer.status_code == 409
            assert "TIM4REC_MODELS_DIR" in answer.json()["detail"]

    run(go())


def test_a_request_ends_by_the_model_it_began_with(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        async with served(folder, valkey.url) as client:
            events = await write(client, "ann", ITEMS[3:12])
            services = client._transport.app.api.state.services  # type: ignore[attr-defined]
            engine, append = services.engine, services.engine.append
            begun, held = asyncio.Event(), asyncio.Event()

            async def slow(*arguments: Any) -> Any:
                begun.set()
                await held.wait()
                return await append(*arguments)

            engine.append = slow
            body = {"user_id": "bob", "item_id": "i1"}
            waiting = asyncio.create_task(client.post("/interactions", json=body))
            await begun.wait()
            await choose(client, "two")
            await taken(client, 1)
            await check(client, "ann", events, two)
            assert not engine.queue.closed
            held.set()
            assert (await waiting).json()["status"] == "applied"
            async with asyncio.timeout(LONG_S):
                while engine.scheduler._loops:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(go())


def test_an_old_model_takes_no_memory(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    """Not even until the next collection of garbage: what serves from the start is exempt."""

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            await check(client, "ann", await write(client, "ann", ITEMS[3:12]), one)
            served_first = client._transport.app.api.state.services.served  # type: ignore[attr-defined]
            kept = [weakref.ref(served_first.engine.pool), weakref.ref(served_first.artefact.model)]
            del served_first
            gc.collect()
            gc.disable()
            try:
                await choose(client, "two")
                await taken(client, 1)
                async with asyncio.timeout(LONG_S):
                    while any(one() is not None for one in kept):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            finally:
                gc.enable()

    run(go())


def test_users_move_with_their_next_request(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        async with served(folder, valkey.url) as client:
            for user in USERS:
                await write(client, user, ITEMS[6:9])
                await get(client, user)
            rebuilds = f'tim4rec_model_rebuilds_total{{model="{two.identity}"}}'
            before = await counted(client, rebuilds)
            await choose(client, "two")
            await taken(client, 1)
            for asked in (0, 5, len(USERS)):
                for user in USERS[:asked]:
                    await get(client, user)
                await until(client, lambda process, n=asked: process["moved_users"] == n)
                (process,) = (await shown(client))["processes"]
                assert process["waiting_users"] == len(USERS) - asked
            assert await counted(client, 'tim4rec_moved_users{state="moved"}') == len(USERS)
            for artefact, users in ((one, 0), (two, len(USERS))):
                own = f'tim4rec_model_users{{model="{artefact.identity}"}}'
                assert await counted(client, own) == users
            assert await counted(client, rebuilds) == before + len(USERS)

    run(go())


def test_a_damaged_record_is_followed_by_nobody(
    folder: Path, one: Artefact, two: Artefact, valkey: ValkeyServer, run: Any
) -> None:
    async def go() -> None:
        for damaged in (b"", b"{", b"[]", json.dumps({"version": 3}).encode()):
            with valkey.client() as store:
                store.set("tim4rec:active", damaged)
                store.hset("tim4rec:serving", mapping={"a": damaged, "b": '{"at": 0}'})
            async with served(folder, valkey.url) as client:
                assert (await get(client, "ann"))["model"] == one.identity
                answer = await client.get("/admin/model", headers=ADMIN)
                assert answer.status_code == 409
                assert "tim4rec:active" in answer.json()["detail"]
                with valkey.client() as store:  # nobody wrote these who still serves
                    assert not store.hmget("tim4rec:serving", "a", "b")[0]

    run(go())

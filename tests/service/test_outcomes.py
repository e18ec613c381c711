"""What was shown and what became of it, counted by model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from model.artefact import Artefact
from model.kinds import KindRules
from service.feedback import outcomes
from service.feedback.outcomes import ITEMS, LISTS, Outcomes
from service.observe import metrics
from service.store.client import Store
from service.store.events import NewEvent, new_uid
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, in_process, make_artefact
from tests.waited import LONG_S

CATALOGUE = [f"i{n}" for n in range(12)]
KINDS = ["none", "buy"]


def counted(model: str) -> Counter[str]:
    found = {kind: int(metrics.outcomes(model, kind)._value.get()) for kind in KINDS}
    return Counter(found)


def interaction(item: str, kind: str = "none") -> NewEvent:
    return NewEvent(new_uid(), item, kind=None if kind == "none" else kind)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


shows = st.tuples(
    st.sampled_from(["ann", "b{o}b:/%"]),
    st.sampled_from(["a", "b-float16-64"]),
    st.lists(st.sampled_from(CATALOGUE), max_size=4, unique=True),
)
acts = st.tuples(
    st.sampled_from(["ann", "b{o}b:/%"]), st.sampled_from(CATALOGUE), st.sampled_from(KINDS)
)


@settings(max_examples=examples(15))
@given(st.lists(shows | acts | st.just("flush"), max_size=40))
def test_an_item_counts_once_for_the_model_that_showed_it_last(
    store: ValkeyServer, steps: list[Any]
) -> None:
    async def go() -> None:
        run = uuid4().hex
        expected: dict[str, Counter[str]] = {"a": Counter(), "b-float16-64": Counter()}
        items = Counter[str]()
        before = {model: counted(model) for model in expected}
        shown_before = {model: metrics.of_model(model).shown._value.get() for model in expected}
        lists: dict[str, list[tuple[str, set[str]]]] = {"ann": [], "b{o}b:/%": []}
        async with Store(store.url) as connection:
            tried = Outcomes(connection, namespace=run, kinds=KindRules.parse("buy:step"))
            for step in steps:
                if step == "flush":
                    await tried.flush()
                elif isinstance(step[2], list):
                    user, model, shown = step
                    tried.shown(user, model, shown)
                    items[model] += len(shown)
                    if shown:
                        lists[user] = [(model, set(shown)), *lists[user]][:LISTS]
                else:
                    user, item, kind = step
                    tried.logged(user, interaction(item, kind), BASE_MS)
                    by = next((model for model, shown in lists[user] if item in shown), None)
                    if by is not None:
                        expected[by][kind] += 1
                    for _, shown in lists[user]:
                        shown.discard(item)
            await tried.flush()
        for model in expected:
            assert counted(model) - before[model] == expected[model]
            assert metrics.of_model(model).shown._value.get() - shown_before[model] == items[model]

    asyncio.run(go())


def test_what_is_kept_is_little_and_not_for_long(valkey: ValkeyServer, run: Any) -> None:
    async def go() -> None:
        model = uuid4().hex
        async with Store(valkey.url) as connection:
            tried = Outcomes(connection, window_s=1)
            many = [f"item {n}" for n in range(1000)]
            for _ in range(3 * LISTS):
                tried.shown("ann", model, many)
            await tried.flush()
            with valkey.client() as client:
                assert client.llen("tim4rec:shown:ann") == LISTS
                assert client.memory_usage("tim4rec:shown:ann") < LISTS * (5 * ITEMS + 100)
                assert 0 < client.pttl("tim4rec:shown:ann") <= 1000
            assert metrics.of_model(model).shown._value.get() == 3 * LISTS * ITEMS
            tried.logged(
                "ann", interaction(many[ITEMS]), BASE_MS
            )  # not among those that count as shown
            await tried.flush()
            assert not counted(model)["none"]
            await asyncio.sleep(0.6)
            tried.shown("ann", model, ["another"])  # the older ones are kept, and too old soon
            await tried.flush()
            await asyncio.sleep(0.6)
            tried.logged("ann", interaction(many[0]), BASE_MS)
            tried.logged("ann", interaction("another"), BASE_MS)
            await tried.flush()
            assert counted(model)["none"] == 1
            await asyncio.sleep(0.6)
            with valkey.client() as client:
                assert not client.exists("tim4rec:shown:ann")

    run(go())


def test_an_outage_costs_counts_and_nothing_else(
    durable_valkey: ValkeyServer, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "FLUSH_EVERY_S", 0.01)
    monkeypatch.setattr(outcomes, "WAITING", 3)

    async def go() -> None:
        model = uuid4().hex
        failures = metrics.OUTCOME_FAILURES._value.get()
        async with Store(durable_valkey.url, timeout_s=0.2) as connection:
            tried = Outcomes(connection)
            for n in range(5):
                tried.shown(f"user{n}", model, ["i1"])
            assert metrics.OUTCOME_FAILURES._value.get() == failures + 2
            durable_valkey.kill()
            async with tried.running():
                await until(lambda: metrics.OUTCOME_FAILURES._value.get() >= failures + 3)
                durable_valkey.start()
                await asyncio.sleep(0.1)
                tried.shown("ann", model, ["i1"])
                tried.logged("ann", interaction("i1"), BASE_MS)
                await until(lambda: counted(model)["none"] == 1)

    run(go())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_a_trial_is_compared_by_what_its_users_do(
    folder: Path, valkey: ValkeyServer, run: Any
) -> None:
    variants = {
        name: make_artefact(folder / name, CATALOGUE, seed) for seed, name in enumerate("cd")
    }

    async def go() -> None:
        options: dict[str, Any] = {"models_dir": folder, "admin_keys": (SecretStr("admin"),)}
        options |= {"outcome_window_s": 60, "model_poll_s": 0.02, "kinds": "buy:step"}
        admin = {"X-API-Key": "admin"}
        async with in_process(folder / "c", valkey.url, **options) as client:

            async def post(user: str, item: str, **more: Any) -> None:
                body = {"user_id": user, "item_id": item, "timestamp": BASE_MS, **more}
                assert (await client.post("/interactions", json=body)).status_code == 200

            async def get(user: str) -> tuple[str, list[str]]:
                query = {"user_id": user, "k": 4, "exclude_seen": False}
                answer = (await client.get("/recommend", params=query)).json()
                return answer["model"], [item["item_id"] for item in answer["items"]]

            await client.post("/admin/model", json={"model": "d", "share": 0.5}, headers=admin)
            await until(
                lambda: len(client._transport.app.api.state.services.deployment.models) == 2
            )
            shown, done = Counter[str](), Counter[tuple[str, str]]()
            before = {one.identity: counted(one.identity) for one in variants.values()}
            old = {m: metrics.of_model(m).shown._value.get() for m in before}
            for n in range(12):
                user = f"user{n}"
                model, items = await get(user)  # of nobody: not the model's doing
                await post(user, items[0])
                model, items = await get(user)
                shown[model] += 4
                await asyncio.sleep(0.01)
                if n % 2:
                    await post(user, items[1])
                    await post(user, items[1])
                    done[model, "none"] += 1
                if n % 3 == 0:
                    await post(user, items[2], kind="buy")
                    done[model, "buy"] += 1
                await post(user, next(item for item in CATALOGUE if item not in items))
            session = {"events": [{"item_id": "i1"}], "k": 5}
            assert (await client.post("/recommend/session", json=session)).status_code == 200
            await until(
                lambda: all(
                    (counted(model) - before[model]).total() >= sum(done[model, k] for k in KINDS)
                    for model in shown
                )
            )
            assert set(shown) == {one.identity for one in variants.values()}
            for model in shown:
                assert metrics.of_model(model).shown._value.get() - old[model] == shown[model]
                grown = counted(model) - before[model]
                assert grown == Counter({k: done[model, k] for k in KINDS})

    run(go())


def test_an_erased_user_was_shown_nothing(folder: Path, valkey: ValkeyServer, run: Any) -> None:
    artefact: Artefact = make_artefact(folder / "c", CATALOGUE)

    async def go() -> None:
        options = {"outcome_window_s": 600}
        async with (
            in_process(artefact.folder, valkey.url, **options) as one,
            in_process(artefact.folder, valkey.url, **options) as other,
        ):
            body = {"user_id": "ann", "item_id": "i1", "timestamp": BASE_MS}
            assert (await one.post("/interactions", json=body)).status_code == 200
            assert (await other.get("/recommend", params={"user_id": "ann"})).is_success
            with valkey.client() as client:
                await until(lambda: client.exists("tim4rec:shown:ann"))
                # Waits at the other process while the user is erased here.
                assert (await other.get("/recommend", params={"user_id": "ann"})).is_success
                assert (await one.delete("/users/ann")).json()["erased"]
                await asyncio.sleep(1)
                await until(lambda: client.keys("*ann*") == [])

    run(go())

"""Several models on trial at once: who may be, how each is told apart, and how a trial ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from model import artefact as artefacts
from model.artefact import Artefact
from model.times import iso
from service.feedback import trial_counts
from service.models.registry import ModelRegistry
from service.models.traffic_split import SEGMENTS, TrafficSplit, Variant, segment
from service.observe import metrics
from service.store.client import Store
from tests.model.mixtures import some_mixture
from tests.service.conftest import ValkeyServer
from tests.service.model_service import (
    ADMIN,
    AT_MS,
    base_of,
    choose,
    end,
    get,
    served,
    shown,
    taken,
    write,
)
from tests.service.processes import check_answer, make_artefact, offline_scores
from tests.service.test_api import problem
from tests.waited import LONG_S

ITEMS = [f"i{n}" for n in range(30)]
USERS = [f"user{n}" for n in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def models(folder: Path) -> dict[str, Artefact]:
    """`mixed` is `one` with a mixture."""
    found = {
        name: make_artefact(folder / name, ITEMS, seed) for seed, name in enumerate(["one", "two"])
    }
    one = found["one"]
    artefacts.save_artefact(folder / "mixed", one.model, one.items, {}, "", some_mixture())
    found["mixed"] = artefacts.load_artefact(folder / "mixed")
    return found


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/admin/model", json=body, headers=ADMIN)


def version(client: httpx.AsyncClient) -> int:
    """Of what this one serves."""
    services = client._transport.app.api.state.services  # type: ignore[attr-defined]
    return int(services.deployment.split.version)


async def split_of(client: httpx.AsyncClient) -> TrafficSplit:
    services = client._transport.app.api.state.services  # type: ignore[attr-defined]
    split: TrafficSplit = await services.deployer.registry.read()
    return split


def test_three_models_side_by_side_are_told_apart(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any
) -> None:
    """Two of them have the same states: their answers differ by `edition`, and so do metrics."""
    editions = {name: artefact.edition for name, artefact in models.items()}
    assert len(set(editions.values())) == 3
    assert models["mixed"].identity == models["one"].identity

    async def answers(client: httpx.AsyncClient) -> dict[str, str]:
        found = {}
        for user in USERS:
            answer = await get(client, user)
            name = next(name for name in editions if editions[name] == answer["edition"])
            assert answer["model"] == models[name].identity
            body = {"user_id": user, "item_ids": ["i3"]}
            for other in (
                (await client.get(f"/users/{user}")).json(),
                (await client.post("/rank", json=body)).json(),
            ):
                assert (other["edition"], other["model"]) == (answer["edition"], answer["model"])
            found[user] = name
        return found

    async def go() -> None:
        async with served(folder, valkey.url, outcome_window_s=60) as client:
            for user in USERS:
                await write(client, user, ITEMS[3:5])
            await choose(client, "mixed", share=0.3)
            said = await choose(client, "two", share=0.3)
            assert [(one["name"], one["share"]) for one in said["trials"]] == [
                ("mixed", 0.3),
                ("two", 0.3),
            ]
            await taken(client, 2)
            before = {one: metrics.of_model(one).shown._value.get() for one in editions.values()}
            first = await answers(client)
            of = {one: trial.name for trial in (await split_of(client)).trials for one in
                  trial.segments}  # fmt: skip
            assert first == {user: of.get(segment(user), "one") for user in USERS}
            assert set(first.values()) == set(editions)
            for name, edition in editions.items():
                grown = metrics.of_model(edition).shown._value.get() - before[edition]
                assert grown == 10 * list(first.values()).count(name)
            (process,) = (await shown(client))["processes"]
            assert [one["edition"] for one in process["trials"]] == [
                editions["mixed"],
                editions["two"],
            ]
            # One grows, one ends, one becomes the base: nobody else moves.
            await choose(client, "mixed", share=0.6)
            await taken(client, 3)
            grown_to = await answers(client)
            moved = {user for user in USERS if grown_to[user] != first[user]}
            assert moved
            assert all((first[user], grown_to[user]) == ("one", "mixed") for user in moved)
            await end(client, "mixed")
            await taken(client, 4)
            assert await answers(client) == {
                user: "one" if name == "mixed" else name for user, name in grown_to.items()
            }
            await choose(client, "mixed")
            await taken(client, 5)
            assert await answers(client) == {
                user: "two" if name == "two" else "mixed" for user, name in grown_to.items()
            }
            assert [one["name"] for one in (await shown(client))["trials"]] == ["two"]
            assert (await client.delete("/admin/model", headers=ADMIN)).is_success
            await taken(client, 6)
            assert set((await answers(client)).values()) == {"one"}

    run(go())


def test_any_model_that_is_served_can_be_asked(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any
) -> None:
    """Base or on trial, of whoever's list, with an admin key; it is counted as shown to nobody."""

    async def go() -> None:
        async with served(folder, valkey.url, outcome_window_s=60, api_keys="own") as client:
            client.headers["X-API-Key"] = "own"
            events = await write(client, USERS[0], ITEMS[3:5])
            await choose(client, "two", share=0.5)
            await taken(client, 1)
            asked = {"user_id": USERS[0], "k": 5, "at": iso(AT_MS), "explain": True}
            own = await get(client, USERS[0])
            shown_before = {
                one.edition: metrics.of_model(one.edition).shown._value.get()
                for one in models.values()
            }
            for name in ("one", "two"):
                edition = models[name].edition
                answer = await client.post(
                    "/admin/recommend", json=asked | {"edition": edition}, headers=ADMIN
                )
                found = answer.raise_for_status().json()
                assert (found["edition"], found["version"]) == (edition, 2)
                check_answer(found, offline_scores(models[name], events, AT_MS), 5, ITEMS[3:5])
                assert {one["version"] for one in found["items"][0]["because"]} == {1, 2}
            assert (await get(client, USERS[0]))["edition"] == own["edition"]
            grown = {
                one: metrics.of_model(one).shown._value.get() - before
                for one, before in shown_before.items()
            }
            assert {one: number for one, number in grown.items() if number} == {own["edition"]: 10}
            body = asked | {"edition": models["mixed"].edition}
            refused = await client.post("/admin/recommend", json=body, headers=ADMIN)
            assert f"{models['two'].edition} (two)" in problem(refused, 422, "edition")["detail"]
            assert (await client.post("/admin/recommend", json=body)).status_code == 401

    run(go())


def test_a_model_is_tried_without_its_mixture(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any
) -> None:
    mixed = models["mixed"]

    async def go() -> None:
        async with served(folder, valkey.url) as client:
            for user in USERS:
                await write(client, user, ITEMS[3:5])
            await choose(client, "mixed")
            said = await choose(client, "mixed", share=0.5, live=False)
            assert said["base"] == base_of("mixed", mixed.edition)
            trial = said["trials"][0]
            assert (trial["identity"], trial["live"]) == (mixed.identity, False)
            await taken(client, 2)
            found = {user: await get(client, user) for user in USERS}
            assert {one["edition"] for one in found.values()} == {mixed.edition, mixed.identity}
            services = client._transport.app.api.state.services  # type: ignore[attr-defined]
            base, other = services.deployment.models
            assert base.engine.runner.retrieval.live is not None
            assert other.engine.runner.retrieval.live is None
            refused = await post(client, model="one", share=0.2, live=False)
            assert refused.status_code == 422
            assert "no mixture" in refused.json()["detail"]
            refused = await post(client, model="one", share=0.2)  # the same, by another name
            assert refused.status_code == 422
            assert "on trial already, as mixed" in refused.json()["detail"]
            await choose(client, "mixed", live=False)
            await taken(client, 3)
            assert (await get(client, "user1"))["edition"] == mixed.identity
            assert (await shown(client))["trials"] == []

    run(go())


def test_trials_have_bounds(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any
) -> None:
    make_artefact(folder / "a b", ITEMS, 7)
    make_artefact(folder / "four", ITEMS, 8)

    async def refusal(client: httpx.AsyncClient, status: int, **body: Any) -> str:
        answer = await post(client, **body)
        assert answer.status_code == status, answer.text
        return str(answer.json()["detail"])

    async def go() -> None:
        async with served(folder, valkey.url, max_trials=2) as client:
            counting = await refusal(client, 409, model="two", share=0.1, decide=True)
            assert "TIM4REC_OUTCOME_WINDOW_S" in counting
            assert "only a trial" in await refusal(client, 422, model="two", decide=True)
            await refusal(client, 422, model="two", share=0.0001)
            await choose(client, "two", share=0.4)
            assert "less than 0.6" in await refusal(client, 422, model="four", share=0.6)
            await choose(client, "a b", share=0.55)
            many = await refusal(client, 409, model="four", share=0.01)
            assert "two, a b on trial already" in many
            assert "max_trials" in many
            assert (await shown(client))["version"] == 2
            assert "less than 0.6" in await refusal(client, 422, model="a b", share=0.65)
            unknown = await client.delete("/admin/model/trials/one", headers=ADMIN)
            assert unknown.status_code == 404
            await end(client, "a%20b")
            assert [one["name"] for one in (await shown(client))["trials"]] == ["two"]
            assert (await client.delete("/admin/model/trials/two")).status_code == 401

    run(go())


def test_what_was_set_before_there_were_several_is_read(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any
) -> None:
    base, trial = ({"name": name, "identity": models[name].edition} for name in ("one", "two"))
    record = {"version": 4, "base": base, "trial": trial, "share": 0.25, "token": "of then"}

    async def go() -> None:
        with valkey.client() as store:
            store.set("tim4rec:active", json.dumps(record))
        async with served(folder, valkey.url) as client:
            found = await shown(client)
            assert (found["version"], found["base"]) == (4, base_of("one", base["identity"]))
            assert [(one["name"], one["share"]) for one in found["trials"]] == [("two", 0.25)]
            assert await split_of(client) == await split_of(client)
            await choose(client, "two", share=0.5)
            await taken(client, 5)
            assert len((await split_of(client)).trials[0].segments) == SEGMENTS // 2
        for share in (0.0, 0.5):
            alone = record | {"trial": None, "share": share}
            with valkey.client() as store:
                store.set("tim4rec:active", json.dumps(alone))
            async with Store(valkey.url) as store:
                split = await ModelRegistry(store, namespace="tim4rec").read()
            assert (split.base, split.trials) == (Variant(**base), ())

    run(go())


# -- deciding ----------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a service whose trials end after seconds."""
    monkeypatch.setattr(trial_counts, "SETTLED_MS", 500)
    return {
        "outcome_window_s": 60, "trial_observed_s": 3, "trial_least_users": 10,
        "trial_longest_s": 3600, "admin_keys": (SecretStr("of the admin"),),
    }  # fmt: skip


def decisions() -> dict[str, float]:
    return {name: one._value.get() for name, one in metrics.TRIAL_DECISIONS.items()}


@pytest.mark.parametrize(
    ("taking", "options", "decision", "reason"),
    [
        ("two", {}, "promoted", "better"),
        ("base", {}, "taken_back", "worse"),
        ("both", {"trial_longest_s": 1, "trial_margin": 0.9}, "promoted", "not worse"),
        ("nobody", {"trial_longest_s": 1, "trial_least_users": 100}, "taken_back", "undecided"),
    ],
)
def test_a_trial_ends_by_what_its_users_do(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any,
    soon: dict[str, Any], taking: str, options: dict[str, Any], decision: str, reason: str,
) -> None:  # fmt: skip
    """Counted by two processes together, decided by one of them. Most users are new: what stands in
    for the model's items counts as well."""

    async def go() -> None:
        given = soon | options
        async with (
            served(folder, valkey.url, **given) as client,
            served(folder, valkey.url, **given) as other,
        ):
            for user in USERS[::4]:
                await write(client, user, ITEMS[3:5])
            # A server that has not been sent a script yet is sent it after others that it knows.
            await get(client, USERS[0])
            with valkey.client() as store:
                async with asyncio.timeout(LONG_S):
                    while not store.exists(f"tim4rec:shown:{USERS[0]}"):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            before = decisions()
            await choose(client, "mixed", share=0.1)
            await choose(client, "two", share=0.4)
            async with asyncio.timeout(LONG_S):  # both say what they serve by the same process id
                while {version(client), version(other)} != {2}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            split = await split_of(client)
            of = {one: trial.name for trial in split.trials for one in trial.segments}
            arms = {user: of.get(segment(user), "base") for user in USERS}
            takers = {"both": ("two", "base"), "nobody": ()}.get(taking, (taking,))
            for place, user in enumerate(USERS):
                asked = (client, other)[place % 2]
                item = (await get(asked, user))["items"][0]["item_id"]
                for _ in range(2 * (arms[user] in takers)):  # a user counts once
                    body = {"user_id": user, "item_id": item}
                    assert (await asked.post("/interactions", json=body)).is_success
            number = {arm: list(arms.values()).count(arm) for arm in ("base", "two")}

            async def all_observed() -> bool:
                figures = (await shown(other))["trials"][1]["figures"]
                return bool(
                    figures["trial"]["shown"] == number["two"]
                    and figures["base"]["shown"] == number["base"]
                )

            async with asyncio.timeout(LONG_S):
                while not await all_observed():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await choose(client, "two", share=0.4, decide=True)
            async with asyncio.timeout(LONG_S):
                while not (found := await shown(other))["decisions"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            (decided,) = found["decisions"]
            assert (decided["trial"], decided["identity"]) == ("two", models["two"].edition)
            assert (decided["decision"], decided["reason"]) == (decision, reason)
            assert ":" in decided["by"]
            figures = decided["figures"]
            for side, arm in (("trial", "two"), ("base", "base")):
                all_took = number[arm] if arm in takers else 0
                assert figures[side] == {"shown": number[arm], "taken": all_took}
            assert figures["low"] <= figures["difference"] <= figures["high"]
            promoted = base_of("two", models["two"].edition) if decision == "promoted" else None
            assert (found["version"], found["base"]) == (4, promoted)
            assert [one["name"] for one in found["trials"]] == ["mixed"]  # it goes on
            (mixed,) = (await split_of(client)).trials
            same = mixed.token == split.trials[0].token
            assert same == (decision == "taken_back")  # else compared with another base
            async with asyncio.timeout(LONG_S):
                while {version(client), version(other)} != {4}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            after = decisions()
            assert {name: after[name] - before[name] for name in after} == {
                name: float(name == decision) for name in after
            }

    run(go())


def test_a_trial_that_is_not_to_decide_goes_on_and_says_how_it_stands(
    folder: Path, models: dict[str, Artefact], valkey: ValkeyServer, run: Any, soon: dict[str, Any]
) -> None:
    async def go() -> None:
        given = soon | {"trial_observed_s": 2, "trial_longest_s": 1}
        async with served(folder, valkey.url, **given) as client:
            await choose(client, "two", share=0.5)
            await taken(client, 1)
            (trial,) = (await shown(client))["trials"]
            assert (trial["shown"], trial["decision"]) == (0, "undecided")
            assert trial["figures"]["difference"] is None
            segments = (await split_of(client)).trials[0].segments
            for user in USERS:
                await get(client, user)
            (trial,) = (await shown(client))["trials"]
            assert trial["shown"] == 0  # nobody has been observed to the end
            number = sum(segment(user) in segments for user in USERS)
            async with asyncio.timeout(LONG_S):
                while (trial := (await shown(client))["trials"][0])["shown"] < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (trial["shown"], trial["taken"]) == (number, 0)
            found = await shown(client)
            assert found["version"] == 1
            assert found["decisions"] == []

    run(go())

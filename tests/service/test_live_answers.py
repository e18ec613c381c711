"""What the running service answers by live evidence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr

from model.artefact import Artefact, load_artefact, save_artefact
from model.live.arrays import unpacked
from model.live.evidence import Evidence, user_key
from model.live.mixture import Mixture
from model.live.ranker import Features
from model.live.ranking import (
    AFTER,
    AGE,
    HAS_QUERY,
    LENGTH,
    LIKE_QUERY,
    LIKE_RECENT,
    NEAR,
    POPULAR,
    VISIT,
)
from tests.model.mixtures import mixture_of, some_mixture
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, Service, in_process, make_artefact
from tests.service.processes import popular as popular_in_training
from tests.service.test_metrics import samples, value
from tests.waited import LONG_S, at_last, until
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.interactions import Log
from training.mixture import user_ids

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Answer = dict[str, Any]
Interaction = tuple[str, str, int]

ITEMS = [f"i{n}" for n in range(60)]
NEW = [f"new {n}" for n in range(12)]
LATER_MS = BASE_MS + 10**9
SENSIBLE = mixture_of(model=1, near=0.7, after=0.3, popular_1d=0.6, popular_30d=0.2, age=-0.1)
ADMIN = {"X-API-Key": "of the admin"}


def with_mixture(folder: Path, mixture: Mixture | None, seed: int = 3) -> Artefact:
    made = make_artefact(folder, ITEMS, seed)
    save_artefact(folder, made.model, made.items, {}, "a test", mixture=mixture)
    return load_artefact(folder)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return with_mixture(tmp_path_factory.mktemp("live") / "model", SENSIBLE)


def ids(answer: Answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


# -- as a walk offline -------------------------------------------------------------------


def drawn_log(users: int, length: int, seed: int = 1) -> list[Interaction]:
    """Of items that the model knows and of such that it does not, some of them several times, each
    at its own time; one user has only items that it does not know."""
    draw = np.random.default_rng(seed)
    turns = draw.permutation(np.repeat(np.arange(users), length)).tolist()
    times = (BASE_MS + np.cumsum(draw.integers(1, 10**7, len(turns)))).tolist()
    popular = [*ITEMS[:20], *NEW]
    return [
        (f"u{user}", str(draw.choice(popular if user else NEW)), time)
        for user, time in zip(turns, times, strict=True)
    ]


def mixed(features: Features, mixture: Mixture) -> np.ndarray:
    """The candidates' scores."""
    weights, f, c = mixture.weights, features.features, features.context
    if not (c[HAS_QUERY] or c[LENGTH]):
        return f[mixture.alone]
    hidden = weights.hidden @ f + (weights.hidden_context @ c + weights.bias)[:, None]
    scores: np.ndarray = (weights.linear + weights.by_context @ c) @ f
    return scores + weights.out @ np.maximum(hidden, 0)


class Offline:
    """The log, walked event by event."""

    def __init__(self, log: Sequence[Interaction], artefact: Artefact) -> None:
        assert artefact.mixture is not None
        self._model, self._known = artefact.model, artefact.items.ids
        self._mixture = artefact.mixture
        schema = {"user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64}
        frame = pl.DataFrame(log, schema=schema, orient="row")
        by_user = Log(frame.sort("user_id", "time_ms", maintain_order=True))
        self.events = Events.of(by_user)
        self.rows: Int64s = np.argsort(self.events.times, kind="stable")
        self._walk = LiveWalk(
            self.events, user_ids(by_user), self._model, self._known, self._mixture
        )
        self._names = list(self._known)

    def observe(self, rows: Int64s) -> None:
        for row in rows:
            item = self.events.item_ids[self.events.items[row]]
            if item not in self._names:
                self._names.append(item)
            self._walk.observe(np.array([row]))

    def answers(self, rows: Int64s, k: int = 10) -> list[list[tuple[str, float]]]:
        """What the users of these events are to be given just before them, at their times."""
        times = self.events.times[rows]
        lists = ModelLists.of(self.events, rows, self._model, self._known, times)
        found = []
        for place, row in enumerate(rows.tolist()):
            features = self._walk.features(row, lists, place)
            scores = mixed(features, self._mixture)
            order = np.lexsort((features.rows, -scores))[:k]
            names = [self._names[row - 1] for row in features.rows[order]]
            found.append(list(zip(names, scores[order].tolist(), strict=True)))
        return found

    def shares(self, rows: Int64s) -> dict[str, float]:
        """Of one event's candidates, by how much their scores are what is counted of them."""
        times = self.events.times[rows]
        lists = ModelLists.of(self.events, rows, self._model, self._known, times)
        found = self._walk.features(int(rows[0]), lists, 0)
        without = found.features.copy()
        without[[NEAR, AFTER, VISIT]] = np.log2(1e-3)
        without[POPULAR:AGE], without[AGE] = -6.64, np.log2(0.02)
        without[[LIKE_RECENT, LIKE_QUERY]] = 0
        scores = mixed(found, self._mixture)
        shares = scores - mixed(found._replace(features=without), self._mixture)
        names = [self._names[row - 1] for row in found.rows]
        return dict(zip(names, shares.tolist(), strict=True))


def check_same(answer: Answer, expected: Sequence[tuple[str, float]]) -> None:
    """Where these are fewer, what is popular fills the list up."""
    assert len(answer["items"]) == 10
    assert ids(answer)[: len(expected)] == [item for item, _ in expected]
    given = [item["score"] for item in answer["items"][: len(expected)]]
    np.testing.assert_allclose(given, [score for _, score in expected], atol=1e-4, rtol=1e-5)


def post(client: httpx.Client, interaction: Interaction) -> None:
    user, item, time = interaction
    body = {"user_id": user, "item_id": item, "timestamp": time}
    assert client.post("/interactions", json=body).is_success


def recommended(client: httpx.Client, user: str, at: int) -> Answer:
    query: dict[str, str | int] = {"user_id": user, "at": at}
    answer: Answer = client.get("/recommend", params=query).raise_for_status().json()
    return answer


@pytest.mark.parametrize("mixture", [SENSIBLE, some_mixture(4)], ids=["sensible", "any"])
def test_a_service_answers_as_a_walk_offline(
    mixture: Mixture, tmp_path: Path, valkey: ValkeyServer
) -> None:
    artefact = with_mixture(tmp_path / "model", mixture)
    log = drawn_log(users=16, length=12)
    offline = Offline(log, artefact)
    service = Service(artefact.folder, tmp_path / "output", "--redis", valkey.url)
    sources = set[str]()
    try:
        service.start()
        with service.client() as client:

            def counted() -> float:
                return value(samples(client.get("/metrics").text), "tim4rec_live_events_total")

            for begin in range(0, len(log), 12):
                block = range(begin, min(begin + 12, len(log)))
                until(lambda n=begin: counted() == n)
                users = [log[place][0] for place in block]
                first = [p for n, p in enumerate(block) if users[n] not in users[:n]]
                expected = offline.answers(offline.rows[first])
                if begin:  # else nothing is counted yet
                    for place, own in zip(first, expected, strict=True):
                        user, _, at = log[place]
                        # Again, until what is new in the evidence is in the catalogue.
                        at_last(
                            lambda u=user, t=at, e=own: check_same(recommended(client, u, t), e)
                        )
                        sources.add(recommended(client, user, at)["source"])
                for place in block:
                    post(client, log[place])
                offline.observe(offline.rows[block.start : block.stop])
    finally:
        service.kill()
    assert sources == {"model", "live"}


def test_all_processes_agree(artefact: Artefact, tmp_path: Path, valkey: ValkeyServer) -> None:
    log = drawn_log(users=8, length=8, seed=2)
    service = Service(artefact.folder, tmp_path / "output", "--redis", valkey.url, workers=2)
    try:
        service.start()
        with service.client(headers={"Connection": "close"}) as client:  # any worker answers
            for interaction in log:
                post(client, interaction)

            def check() -> None:
                found = samples(client.get("/metrics").text)
                assert value(found, "tim4rec_live_events_total") == 2 * len(log)
                for user in {user for user, _, _ in log}:
                    answers = [recommended(client, user, LATER_MS) for _ in range(8)]
                    assert all(answer["items"] == answers[0]["items"] for answer in answers)
                    assert any(item in NEW for item in ids(answers[0]))

            at_last(check)
    finally:
        service.kill()


# -- in one process ----------------------------------------------------------------------


class Live:
    """The service in this process."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.services = client._transport.app.api.state.services  # type: ignore[attr-defined]

    @property
    def evidence(self) -> Evidence:
        found: Evidence = self.services.context.live.evidence
        return found

    async def post(self, *interactions: tuple[str, str] | Interaction) -> None:
        """One after the other; returns when they are counted and new items noted."""
        before = self.evidence.n_events
        for user, item, *time in interactions:
            body = {"user_id": user, "item_id": item}
            if time:
                body["timestamp"] = time[0]
            assert (await self.client.post("/interactions", json=body)).is_success
        await self.until(lambda: self.evidence.n_events == before + len(interactions))
        served, names = self.services.deployment.base, self.evidence.item_ids
        noted = self.services.context.settings.live_new_items
        if noted and served.artefact.mixture is not None:
            await self.until(lambda: len(served.catalogue.rows(names)) == len(names))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def recommend(self, user: str, **more: Any) -> Answer:
        found = await self.client.get("/recommend", params={"user_id": user, "k": 60, **more})
        assert found.is_success, found.text
        answer: Answer = found.json()
        return answer

    async def given(self, user: str, **more: Any) -> list[str]:
        return ids(await self.recommend(user, **more))


@asynccontextmanager
async def live(artefact: Artefact, valkey: ValkeyServer, **settings: Any) -> AsyncIterator[Live]:
    async with in_process(artefact.folder, valkey.url, **settings) as client:
        yield Live(client)


def about(item: str, *others: str, times: int = 3) -> list[tuple[str, str]]:
    """Some users, each of whom has these."""
    return [(f"some {n}", one) for n in range(times) for one in (item, *others)]


async def answers_of(client: httpx.AsyncClient, **more: Any) -> list[Answer]:
    """On every route, for somebody known and somebody unknown; without the edition, which names
    the artefact's mixture."""
    found = []
    for user in ("ann", "nobody"):
        asked = {"user_id": user, "k": 20, "at": LATER_MS, **more}
        found.append(await client.get("/recommend", params=asked))
        found.append(await client.post("/recommend", json=asked))
    events = [{"item_id": item, "timestamp": BASE_MS} for item in ("i3", "new 1")]
    asked = {"events": events, "k": 20, "at": LATER_MS, **more}
    found.append(await client.post("/recommend/session", json=asked))
    assert all(one.is_success for one in found), [one.text for one in found]
    return [{k: v for k, v in one.json().items() if k != "edition"} for one in found]


def test_without_it(artefact: Artefact, tmp_path: Path, valkey: ValkeyServer, run: Run) -> None:
    """By the setting, by the request, and where the artefact has no mixture: all the same."""
    plain = with_mixture(tmp_path / "model", None)
    assert plain.identity == artefact.identity
    interactions = [("ann", "i1"), ("ann", "new 1"), *about("new 2", "i2", "i7")]

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url, live=False) as client:
            for user, item in interactions[:2]:
                body = {"user_id": user, "item_id": item, "timestamp": BASE_MS}
                assert (await client.post("/interactions", json=body)).is_success
            off = await answers_of(client)
            assert await answers_of(client, live=True) == off
        with valkey.client() as store:
            assert not list(store.scan_iter("*:live*"))
        async with live(plain, valkey) as of_plain:
            await of_plain.post(*interactions[2:])
            assert await answers_of(of_plain.client) == off
        async with live(artefact, valkey) as service:
            await service.until(lambda: service.evidence.n_events == len(interactions) - 2)
            assert await answers_of(service.client, live=False) == off
            on = await answers_of(service.client)
            assert all(ids(one) != ids(other) for one, other in zip(on, off, strict=True))

    run(check())


# -- items that are new ------------------------------------------------------------------


def test_a_new_item_is_recommended_once_it_has_had_events(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        async with live(artefact, valkey) as service:
            await service.post(("ann", "i1"), *about("new", "i1"))
            answer = await service.recommend("ann")
            (found,) = (item for item in answer["items"] if item["item_id"] == "new")
            assert found["path"] == "live"
            assert answer["source"] == "model"
            assert "new" not in await service.given("some 1")  # has had it
            assert "new" in await service.given("some 1", exclude_seen=False)
            assert "new" not in await service.given("ann", exclude="new")
            assert "new" not in await service.given("ann", category="any")
            # It is in no answer but those.
            assert "new" not in await service.given("ann", live=False)
            listed = (await service.client.get("/items", params={"unavailable": True})).json()
            assert "new" not in ids(listed)
            body = {"user_id": "ann", "item_ids": ["new", "i5"]}
            ranked = (await service.client.post("/rank", json=body)).json()["items"]
            assert [item["known"] for item in ranked] == [True, False]

    run(check())


def test_a_new_item_with_a_record_is_as_that_says(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        async with live(artefact, valkey) as service:
            names = ["plain", "hidden", "of records", "deleted"]
            await service.post(("ann", "i1"), *(one for name in names for one in about(name, "i1")))
            assert set(names) <= set(await service.given("ann"))
            put, delete = service.client.put, service.client.delete
            assert (await put("/items/hidden", json={"hidden": True})).is_success
            record = {"categories": ["c"], "attributes": {"price": 3}}
            assert (await put("/items/of%20records", json=record)).is_success
            assert (await put("/items/deleted", json={})).is_success
            assert "deleted" in await service.given("ann")
            assert (await delete("/items/deleted")).is_success
            records = service.services.deployment.base.catalogue.records
            for _ in range(2):
                found = await service.given("ann")
                assert {"plain", "of records"} <= set(found)
                assert not {"hidden", "deleted"} & set(found)
                assert await service.given("ann", category="c") == ["of records"]
                assert await service.given("ann", filter="price < 4") == ["of records"]
                records._cursor = None  # all records are read anew
                await records.refresh()

    run(check())


def test_new_items_may_be_left_out(artefact: Artefact, valkey: ValkeyServer, run: Run) -> None:
    async def check() -> None:
        async with live(artefact, valkey, live_new_items=False) as service:
            await service.post(("ann", "i1"), *about("new", "i1"))
            for user in ("ann", "nobody"):
                found = await service.given(user)
                assert found
                assert set(found) <= set(ITEMS)
            assert (await service.client.put("/items/new", json={})).is_success
            assert "new" in await service.given("ann")

    run(check())


def test_items_that_are_had_near_a_new_one(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        async with live(artefact, valkey) as service:
            await service.post(*about("new", "i1", "other", times=4), *about("new", "i1"))
            await service.post(("ann", "alone"))
            alone = await service.client.get("/items/alone/similar")
            assert alone.raise_for_status().json()["items"] == []
            found = await service.client.get("/items/new/similar", params={"k": 2})
            assert ids(found.raise_for_status().json()) == ["i1", "other"]
            assert (await service.client.get("/items/nothing/similar")).status_code == 404

    run(check())


def test_no_item_that_the_user_has_had_is_given_again(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    """However long ago, and from a snapshot as well."""

    async def check() -> None:
        async with live(artefact, valkey, snapshot_every=8) as service:
            had = [f"early {n}" for n in range(3)]
            later = [f"late {n}" for n in range(30)]
            await service.post(*(("ann", item) for item in ("i1", *had, *later)))
            await service.post(*(one for item in had for one in about(item, "i1")))
            assert set(had) <= set(await service.given("bob"))
            assert not {*had, *later} & set(await service.given("ann"))
            assert set(had) <= set(await service.given("ann", exclude_seen=False))
        async with live(artefact, valkey) as service:
            assert set(had) <= set(await service.given("bob"))
            assert not {*had, *later} & set(await service.given("ann"))

    run(check())


# -- users -------------------------------------------------------------------------------


def test_the_first_answer_of_somebody_is_what_is_popular_of_late(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        async with live(artefact, valkey) as service:
            for item, times in (("i5", 2), ("new", 5), ("i40", 4)):
                await service.post(*about(item, times=times))
            answer = await service.recommend("nobody", k=3)
            assert answer["source"] == "live"
            assert [item["path"] for item in answer["items"]] == ["live"] * 3
            assert ids(answer) == ["new", "i40", "i5"]
            # What is popular in training comes after it, as far as asked for.
            popular = [item for item in popular_in_training(artefact) if item not in ids(answer)]
            assert await service.given("nobody", k=10) == ids(answer) + popular[:7]
            assert await service.given("nobody", include="i7") == ["i7"]

    run(check())


def test_an_erased_user_is_none_whose_last_items_are_known(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def check() -> None:
        async with live(artefact, valkey) as service:
            await service.post(("ann", "i1"), ("ann", "i2"), ("bob", "i1"))

            def users() -> set[int]:
                return set(unpacked(service.evidence.to_bytes())["users"].tolist())

            assert users() == {user_key("ann"), user_key("bob")}
            assert (await service.client.delete("/users/ann")).json()["erased"]
            await service.until(lambda: users() == {user_key("bob")})
            assert (await service.recommend("ann"))["source"] == "live"

    run(check())


# -- explanations ------------------------------------------------------------------------


def test_an_answer_says_what_has_happened_since_the_training_did(
    artefact: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    log = drawn_log(users=6, length=8, seed=3)
    asked = [(f"u{n}", "i0", LATER_MS + n) for n in range(6)]
    offline = Offline([*log, *asked], artefact)
    offline.observe(offline.rows[: len(log)])
    # "u0" has only items that the model does not know.
    first = len(log)
    expected = [offline.shares(offline.rows[row : row + 1]) for row in (first, first + 1)]

    async def check() -> None:
        async with live(artefact, valkey) as service:
            await service.post(*log)
            for (user, _, at), shares in zip(asked[:2], expected, strict=True):
                had = {item for name, item, _ in log if name == user}
                query: dict[str, Any] = {"k": 15, "at": at}
                plain = await service.recommend(user, **query)
                answer = await service.recommend(user, **query, explain=True)
                parts = {item["item_id"]: item.pop("live") for item in answer["items"]}
                because = [item.pop("because") for item in answer["items"]]
                assert answer == plain
                assert [len(one) for one in because] == [3 if user == "u1" else 0] * 15
                assert any(item in NEW for item in parts)
                for item, part in parts.items():
                    assert part["share"] == pytest.approx(shares[item], abs=1e-3)
                    assert part.get("item_id") in {None, *had}
                assert any("item_id" in part for part in parts.values())
            # Had near the newest of the user's last items oftener than near the others.
            await service.post(("ann", "i30"), ("ann", "i31"), *about("i31", "i32"))
            (last,) = (await service.recommend("ann", include="i32", explain=True, k=1))["items"]
            assert last["live"]["item_id"] == "i31"
            (first,) = (await service.recommend("nobody", explain=True, k=1))["items"]
            assert first["because"] == []
            assert first["live"].keys() == {"share"}
            assert first["live"]["share"] == pytest.approx(first["score"] + 6.64, abs=1e-3)
            without = await service.recommend("ann", explain=True, live=False, k=1)
            assert "live" not in without["items"][0]

    run(check())


# -- models ------------------------------------------------------------------------------


def test_models_are_switched(tmp_path: Path, valkey: ValkeyServer, run: Run) -> None:
    """To one of the same weights with another mixture, and to one without any."""
    mixtures = {"one": SENSIBLE, "two": mixture_of(model=0.1, near=2), "none": None}
    made = {name: with_mixture(tmp_path / name, own) for name, own in mixtures.items()}
    assert len({one.identity for one in made.values()}) == 1
    interactions = [("ann", "i1"), ("ann", "i2"), *about("new", "i1", "i30")]
    options: dict[str, Any] = {"models_dir": tmp_path, "model_poll_s": 0.02}
    options |= {"admin_keys": (SecretStr(ADMIN["X-API-Key"]),)}

    async def check() -> None:
        expected = {}
        for name, one in made.items():
            async with live(one, valkey) as service:
                if service.evidence.n_events < len(interactions):
                    await service.post(*interactions[service.evidence.n_events :])
                expected[name] = (await service.recommend("ann", at=LATER_MS))["items"]
        assert expected["one"] != expected["two"] != expected["none"] != expected["one"]
        async with live(made["one"], valkey, **options) as service:
            for name in ("two", "none", "one"):
                body = {"model": name}
                answer = await service.client.post("/admin/model", json=body, headers=ADMIN)
                assert answer.is_success, answer.text
                async with asyncio.timeout(LONG_S):
                    while True:
                        if (await service.recommend("ann", at=LATER_MS))["items"] == expected[name]:
                            break
                        await asyncio.sleep(0.02)

    run(check())

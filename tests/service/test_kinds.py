"""What interactions do by their kind: in rules, in states, in answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artefact import Artefact
from model.kinds import Effect, KindRules
from service.bulk.warm import Warmer
from service.engine.engine import Engine
from service.engine.exactness import ExactnessSampler
from service.environment import SettingsError, read_settings
from service.feedback.popularity import Popularity
from service.store.client import Store
from service.store.event_log import EventLog
from service.store.events import NewEvent, new_uid
from tests.service.processes import BASE_MS, check_answer, in_process, make_artefact, offline_scores

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"i{n}" for n in range(30)]
HOUR = 3_600_000
AT = BASE_MS + 100 * HOUR
STEPS = (None, "view", "buy")
RULES = "view:step,buy:step+hide,skip:hide,share:count,*:log"

effects = st.sampled_from(["step", "count", "hide", "log", "step+hide", "count+hide"])
rules = st.dictionaries(st.sampled_from(["a", "b", "c-1", "*"]), effects)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("model"), ITEMS)


# -- rules -------------------------------------------------------------------------------


def test_rules_are_read() -> None:
    found = KindRules.parse(" view:step, buy:step+hide,skip:hide ,*:count,")
    assert found.named == {
        "view": Effect.STEP, "buy": Effect.STEP | Effect.HIDE, "skip": Effect.HIDE
    }  # fmt: skip
    assert [found.of(kind) for kind in (None, "other", "view")] == [
        Effect.STEP, Effect.COUNT, Effect.STEP
    ]  # fmt: skip
    assert [found.counts(kind) for kind in ("buy", "skip", "x")] == [True, False, True]
    assert KindRules.parse("").of("anything") is Effect.STEP


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("view", "'view' is no rule: give KIND:EFFECT"),
        ("vi ew:step", "'vi ew:step' is no rule"),
        (f"{'v' * 33}:step", "is no rule"),
        ("view:steps", "'view:steps': 'steps' is no effect: give step, count, hide, log"),
        ("view:step+", "'' is no effect"),
        ("view:step,view:hide", "view has two rules"),
    ],
)
def test_what_is_no_rule_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"^--kinds: .*") as raised:
        read_settings({"artefact": tmp_path, "kinds": text})
    assert said in str(raised.value)


@given(one=rules, two=rules)
def test_the_identity_is_that_of_what_states_depend_on(
    one: dict[str, str], two: dict[str, str]
) -> None:
    first, second = (
        KindRules.parse(",".join(f"{kind}:{effect}" for kind, effect in of.items()))
        for of in (one, two)
    )

    def states(rules: KindRules) -> list[tuple[bool, bool]]:
        return [(rules.steps(kind), rules.hides(kind)) for kind in ("a", "b", "c-1", "other")]

    assert (first.suffix == second.suffix) == (states(first) == states(second))
    assert (first.suffix == "") == (states(first) == [(True, False)] * 4)


# -- the service -------------------------------------------------------------------------


async def post(client: Any, item: str, hours: float, kind: str | None, **more: Any) -> Any:
    body = {"user_id": "u", "item_id": item, "timestamp": BASE_MS + int(hours * HOUR), **more}
    answer = await client.post(
        "/interactions", json=body if kind is None else {**body, "kind": kind}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def recommend(client: Any, **query: Any) -> dict[str, Any]:
    answer = await client.get("/recommend", params={"user_id": "u", "k": 30, "at": AT, **query})
    found: dict[str, Any] = answer.json()
    return found


GIVEN = [
    ("i1", "view"), ("i2", "skip"), ("i3", None), ("i4", "buy"), ("i5", "share"), ("i6", "other"),
    ("i4", "view"), ("i2", "view"), ("unknown", "buy"), ("i7", "skip"),
]  # fmt: skip


@pytest.mark.parametrize("every", [64, 2])  # from the log, and from a snapshot
def test_kinds_step_hide_or_do_nothing(
    artefact: Artefact, valkey: ValkeyServer, run: Run, every: int
) -> None:
    stepping = [(item, BASE_MS + n * HOUR) for n, (item, kind) in enumerate(GIVEN) if kind in STEPS]
    scores, hidden = offline_scores(artefact, stepping, AT), {"i2", "i4", "i7"}

    async def check(client: Any) -> None:
        for _ in range(2):
            answer = await recommend(client, exclude_seen=False)
            assert answer["version"] == len(GIVEN)
            check_answer(answer, scores, 30, hidden)
            check_answer(await recommend(client), scores, 30, hidden | {"i1", "i3"})
        ranked = {"user_id": "u", "item_ids": ["i1", "i2", "i5"], "at": AT}
        ranking = (await client.post("/rank", json=ranked)).json()["items"]
        assert {item["item_id"] for item in ranking} == {"i1", "i5"}

    async def main() -> None:
        served = {"kinds": RULES, "snapshot_every": every}
        async with in_process(artefact.folder, valkey.url, **served) as client:
            for n, (item, kind) in enumerate(GIVEN):
                await post(client, item, n, kind)
                if n == 5:
                    assert (await recommend(client))["version"] == 6
            await check(client)
            session = [
                {"item_id": item, "timestamp": BASE_MS + n * HOUR, "kind": kind}
                for n, (item, kind) in enumerate(GIVEN)
            ]
            asked = {"events": session, "k": 30, "at": AT, "exclude_seen": False}
            check_answer((await client.post("/recommend/session", json=asked)).json(),
                         scores, 30, hidden)  # fmt: skip
        async with in_process(artefact.folder, valkey.url, **served) as client:
            await check(client)

        # Other rules: other states, and no snapshot is shared.
        async with in_process(artefact.folder, valkey.url, snapshot_every=every) as client:
            everything = [(item, BASE_MS + n * HOUR) for n, (item, _) in enumerate(GIVEN)]
            answer = await recommend(client, exclude_seen=False)
            check_answer(answer, offline_scores(artefact, everything, AT), 30)
            assert answer["model"] == artefact.identity

    run(main())


def test_only_steps_are_reasons(artefact: Artefact, store_url: str, run: Run) -> None:
    async def explained(client: Any, user: str) -> list[dict[str, float]]:
        query = {"user_id": user, "k": 3, "at": AT, "explain": True, "reasons": 9}
        query |= {"exclude": [item for item, _ in GIVEN]}
        items = (await client.get("/recommend", params=query)).json()["items"]
        return [{why["item_id"]: why["contribution"] for why in item["because"]} for item in items]

    async def main() -> None:
        stepping = [(item, n) for n, (item, kind) in enumerate(GIVEN[:6]) if kind in STEPS]
        async with in_process(artefact.folder, store_url, kinds=RULES) as client:
            for n, (item, kind) in enumerate(GIVEN[:6]):
                await post(client, item, n, kind)
            for item, n in stepping:
                await post(client, item, n, None, user_id="only steps")
            found = await explained(client, "u")
            assert all(why.keys() == dict(stepping).keys() for why in found)
            for one, two in zip(found, await explained(client, "only steps"), strict=True):
                assert one == pytest.approx(two, abs=1e-5)

    run(main())


def test_a_user_with_nothing_but_hidden_items_gets_popular_ones(
    artefact: Artefact, store_url: str, run: Run
) -> None:
    async def main() -> None:
        async with in_process(artefact.folder, store_url, kinds=RULES) as client:
            best = (await recommend(client, k=1))["items"][0]["item_id"]
            await post(client, best, 0, "skip")
            answer = await recommend(client, exclude_seen=False)
            assert (answer["source"], answer["version"]) == ("popular", 1)
            assert best not in {item["item_id"] for item in answer["items"]}
            assert len(answer["items"]) == len(ITEMS) - 1

    run(main())


def test_kind_and_weight_in_the_api(artefact: Artefact, store_url: str, run: Run) -> None:
    async def main() -> None:
        async with in_process(artefact.folder, store_url, kinds=RULES) as client:
            await post(client, "i1", 0, "view", weight=2.5, event_id="a")
            again = await post(client, "i1", 0, "view", weight=2.5, event_id="a")
            assert again["status"] == "duplicate"
            for other in ({"kind": "buy", "weight": 2.5}, {"kind": "view"}, {}):
                body = {"user_id": "u", "item_id": "i1", "timestamp": BASE_MS, "event_id": "a"}
                answer = await client.post("/interactions", json={**body, **other})
                assert answer.status_code == 409
            batch = [
                {"user_id": "u", "item_id": "i2", "kind": "whatever", "timestamp": BASE_MS + 1},
                {"user_id": "u", "item_id": "i3", "weight": 0, "timestamp": BASE_MS + 2},
            ]
            await client.post("/interactions/batch", json={"interactions": batch})
            page = (await client.get("/users/u/history")).json()["events"]
            assert [(e["item_id"], e["kind"], e["weight"]) for e in page] == [
                ("i1", "view", 2.5), ("i2", "whatever", None), ("i3", None, 0)
            ]  # fmt: skip
            for field, wrong in [
                ("kind", ""), ("kind", "two words"), ("kind", "v" * 33), ("kind", "view\n"),
                ("kind", 3), ("weight", -1), ("weight", "heavy"), ("weight", 1e10),
            ]:  # fmt: skip
                body = {"user_id": "u", "item_id": "i1", field: wrong}
                answer = await client.post("/interactions", json=body)
                assert answer.status_code == 422
                assert answer.json()["errors"][0]["field"] == f"body.{field}"
            text = (await client.get("/metrics")).text
            for kind in ("view", "buy", "skip", "share", "other", "none", "whatever"):
                assert f'tim4rec_kinds_total{{kind="{kind}"}}' in text

    run(main())


def test_popular_is_what_counts_by_its_weight(artefact: Artefact, store_url: str, run: Run) -> None:
    class Counted(Popularity):
        calls: list[tuple[str, float]] = []  # noqa: RUF012

        def count(self, item_id: str, time_ms: int, weight: float = 1.0) -> None:
            self.calls.append((item_id, weight))

    async def main() -> None:
        async with Store(store_url) as store:
            kinds = KindRules.parse(RULES)
            counted = Counted(store, kinds=kinds)
            engine = Engine(artefact, EventLog(store), listeners=[counted], kinds=kinds)
            await engine.start()
            try:
                events = [
                    NewEvent(new_uid(), item, BASE_MS, str(n), kind, weight)
                    for n, (item, kind, weight) in enumerate([
                        ("a", None, None), ("b", "view", 2.5), ("c", "skip", 9.0),
                        ("d", "share", 0.0), ("e", "unheard", 1.0), ("f", "buy", None),
                    ])
                ]  # fmt: skip
                await engine.append("u", events)
                await engine.append("u", [NewEvent(new_uid(), "a", BASE_MS, "0")])
            finally:
                await engine.stop()
            assert counted.calls == [("a", 1.0), ("b", 2.5), ("d", 0.0), ("f", 1.0)]

    run(main())


def test_the_sampler_and_warm_know_the_rules(artefact: Artefact, store_url: str, run: Run) -> None:
    async def main() -> None:
        async with Store(store_url) as store:
            log, kinds = EventLog(store), KindRules.parse(RULES)
            engine = Engine(artefact, log, kinds=kinds, snapshot_every=1)
            assert engine.identity == artefact.identity + kinds.suffix
            await engine.start()
            try:
                for n, (item, kind) in enumerate(GIVEN):
                    event = NewEvent(new_uid(), item, BASE_MS + n * HOUR, None, kind)
                    await engine.append("u", [event])
                await engine.recommend("u", 1)
                sampler = ExactnessSampler(engine, every_s=1e3, max_events=100, tolerance=1e-3)
                sample = await sampler.check("u")
                assert sample is not None
                assert sample.difference < 1e-4
                row = engine.pool.get("u")
                assert row is not None
                row.hidden.add([9])  # not by the rules
                sample = await sampler.check("u")
                assert sample is not None
                assert sample.difference == float("inf")
            finally:
                await engine.stop()
            warmer = Warmer(artefact, log, kinds=kinds)
            assert warmer.engine.identity == engine.identity
            result = await warmer.run(lambda done: None)
            assert (result.current, result.written) == (1, 0)  # the engine's own snapshot

    run(main())

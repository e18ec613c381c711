"""A service whose artefact scores by vectors and biases of their own: what is scored, what is
hidden, and that another scoring of the same model finds every state where it is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from model.artefact import Artefact, load_artefact, save_artefact
from model.items import Items
from model.live.mixture import Mixture
from model.scoring import Scoring
from tests.model.mixtures import mixture_of
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, check_answer, in_process, make_artefact, offline_scores
from tests.service.test_models import AT_MS, choose, counted, get, served, taken, write

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"i{n}" for n in range(30)]
NEW = ["new 1", "new 2", "new 3"]
MIXTURE = mixture_of(model=1, near=0.5)


def make_edition(
    folder: Path, parent: Artefact, seed: int, mixture: Mixture | None = None
) -> Artefact:
    """The parent with another scoring, of some items more."""
    draw = np.random.default_rng(seed)
    width, size = parent.model.config.d_model, len(ITEMS) + len(NEW)
    vectors = torch.from_numpy(draw.normal(size=(size + 1, width)).astype(np.float32))
    bias = torch.from_numpy(draw.normal(size=size + 1).astype(np.float32))
    items = Items([*ITEMS, *NEW], np.arange(size))
    parent.model.scoring = Scoring(items, vectors, bias)
    save_artefact(folder, parent.model, parent.items, {}, "a test", mixture)
    parent.model.scoring = None
    return load_artefact(folder)


@pytest.fixture
def one(tmp_path: Path) -> Artefact:
    return make_artefact(tmp_path / "models" / "one", ITEMS)


@pytest.fixture
def scored(tmp_path: Path, one: Artefact) -> Artefact:
    return make_edition(tmp_path / "models" / "scored", one, seed=1)


async def given(client: httpx.AsyncClient, user: str, **query: Any) -> list[str]:
    return [item["item_id"] for item in (await get(client, user, k=60, **query))["items"]]


@pytest.mark.parametrize("retrieval", ["exact", "index"])
def test_it_answers_by_the_scoring(
    scored: Artefact, valkey: ValkeyServer, run: Run, retrieval: str, monkeypatch: Any
) -> None:
    if retrieval == "index":
        monkeypatch.setattr("service.catalogue.item_index.LEAST_ITEMS", 1)

    async def go() -> None:
        async with in_process(scored.folder, valkey.url, retrieval=retrieval) as client:
            events = await write(client, "ann", ["i3", "new 1", "i4"])
            scores = offline_scores(scored, events, AT_MS)
            assert len(scores) == len(ITEMS) + len(NEW)
            check_answer(await get(client, "ann", k=60, exclude_seen=False), scores, 60)
            answer = await get(client, "ann", k=60)
            check_answer(answer, scores, 60, without=["i3", "new 1", "i4"])
            assert {item["path"] for item in answer["items"]} == {"model"}
            body = {"user_id": "ann", "item_ids": ["new 2", "i9", "new 1"], "at": AT_MS}
            ranked = (await client.post("/rank", json=body)).json()["items"]
            best = sorted(body["item_ids"], key=lambda item: -scores[item])
            assert [item["item_id"] for item in ranked] == best
            body["exclude_seen"] = True
            ranked = (await client.post("/rank", json=body)).json()["items"]
            assert {item["item_id"] for item in ranked} == {"new 2", "i9"}
            for item in ("new 2", "i5"):
                await check_similar(client, scored, item)

    run(go())


async def check_similar(client: httpx.AsyncClient, artefact: Artefact, item: str) -> None:
    """By the cosines of the vectors, in which no bias counts."""
    ids, scoring = artefact.scored_items.ids, artefact.model.scoring
    assert scoring is not None
    unit = torch.nn.functional.normalize(scoring.vectors[1:], dim=1)
    cosines = unit @ unit[ids.index(item)]
    found = (await client.get(f"/items/{item}/similar", params={"k": 5})).json()["items"]
    order = [ids[place] for place in cosines.argsort(descending=True)[1:6]]
    assert [one["item_id"] for one in found] == order
    for one in found:
        assert one["score"] == pytest.approx(float(cosines[ids.index(one["item_id"])]), abs=1e-5)


def test_what_is_only_scored_moves_no_state_and_is_hidden_once_had(
    scored: Artefact, tmp_path: Path, valkey: ValkeyServer, run: Run
) -> None:
    mixed = make_edition(tmp_path / "mixed", replace(scored), 1, MIXTURE)

    async def go() -> None:
        for settings in ({"live": False}, {"live": True}):
            async with in_process(mixed.folder, valkey.url, **settings) as client:
                user = f"of {settings}"
                await write(client, user, ["i3", "i4"])
                before = await get(client, user, k=60, exclude_seen=False, live=False)
                body = {"user_id": user, "item_id": "new 2", "timestamp": BASE_MS + 10**6}
                posted = (await client.post("/interactions", json=body)).json()
                assert posted["status"] == "unknown_item"
                after = await get(client, user, k=60, exclude_seen=False, live=False)
                assert before["items"] == after["items"]
                for live in (True, False):
                    left = await given(client, user, live=live)
                    assert not {"i3", "i4", "new 2"} & {*left}
                    if not live:
                        assert {"new 1", "new 3"} < {*left}
                assert "new 2" not in await given(client, user, filter='id == "new 2"')
                # Nothing that moves a state: what is popular, without what was had.
                for item in ("new 3", "new 1"):
                    await write(client, f"other {user}", [item])
                popular = await get(client, f"other {user}", k=60, live=False)
                assert popular["source"] != "model"
                names = {item["item_id"] for item in popular["items"]}
                assert names == {*ITEMS, "new 2"}

    run(go())


def test_records_come_after_what_is_scored(
    scored: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def go() -> None:
        async with in_process(scored.folder, valkey.url, catalogue_poll_s=0.02) as client:
            events = await write(client, "ann", ["i3"])
            scores = offline_scores(scored, events, AT_MS)
            for item in ("new 1", "newest"):
                body = {"similar_to": ["new 3"]}
                assert (await client.put(f"/items/{item}", json=body)).is_success
            assert (await client.get("/items/new 1")).json()["known"]
            assert not (await client.get("/items/newest")).json()["known"]
            answer = await get(client, "ann", k=60, exclude_seen=False)
            by_item = {item["item_id"]: item for item in answer["items"]}
            assert by_item["newest"]["path"] == "cold"
            # Its vector and its bias are those of the item that it is like.
            assert by_item["newest"]["score"] == pytest.approx(by_item["new 3"]["score"], abs=1e-4)
            for item, score in scores.items():
                assert by_item[item]["score"] == pytest.approx(score, abs=1e-4)
            await write(client, "ann", ["newest"])
            assert "newest" not in await given(client, "ann")

    run(go())


def test_another_scoring_finds_every_state(
    tmp_path: Path, one: Artefact, scored: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    again = make_edition(tmp_path / "models" / "again", one, seed=2)
    assert len({one.edition, scored.edition, again.edition}) == 3
    assert {scored.identity, again.identity} == {one.identity}
    users = [f"user{n}" for n in range(200)]

    async def rebuilds(client: httpx.AsyncClient) -> list[float]:
        names = 'rebuilds_total{source="snapshot"', 'rebuilds_total{source="log"'
        return [await counted(client, f"tim4rec_{name}") for name in names]

    async def applied(client: httpx.AsyncClient) -> list[float]:
        names = 'applied_events_total{by="step"', 'applied_events_total{by="prefill"'
        return [await counted(client, f"tim4rec_{name}") for name in names]

    async def go() -> None:
        async with served(one.folder.parent, valkey.url, pool_capacity=256) as client:
            events = {user: await write(client, user, ITEMS[n % 20 :][:3]) for n, user in
                      enumerate(users)}  # fmt: skip
            for user in users:
                await get(client, user)
            before = await rebuilds(client)
            moved = await applied(client)
            assert sum(moved) >= 3 * len(users)
            for version, edition in enumerate((scored, again, one), 1):
                await choose(client, edition.folder.name)
                await taken(client, version)
                for user in users:
                    answer = await get(client, user, k=5, exclude_seen=False)
                    scores = offline_scores(edition, events[user], AT_MS)
                    check_answer(answer, scores, 5)
                assert await rebuilds(client) == before
            assert await applied(client) == moved
            await choose(client, "scored", share=0.5)  # beside each other
            await taken(client, 4)
            for user in users[:20]:
                await write(client, user, ["i29"])
            assert await rebuilds(client) == before

    run(go())


def test_another_scoring_reads_the_snapshots(
    scored: Artefact, one: Artefact, valkey: ValkeyServer, run: Run
) -> None:
    async def go() -> None:
        async with in_process(one.folder, valkey.url, snapshot_every=8) as client:
            events = await write(client, "ann", ITEMS[:16])
        async with in_process(scored.folder, valkey.url, snapshot_every=8) as client:
            snapshot = 'tim4rec_rebuilds_total{source="snapshot"}'
            log = 'tim4rec_rebuilds_total{source="log"}'
            before = await counted(client, snapshot), await counted(client, log)
            answer = await get(client, "ann", k=60, exclude_seen=False)
            check_answer(answer, offline_scores(scored, events, AT_MS), 60)
            after = await counted(client, snapshot), await counted(client, log)
            assert after == (before[0] + 1, before[1])

    run(go())

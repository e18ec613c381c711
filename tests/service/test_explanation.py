"""Explanations against scores computed anew without each interaction."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model import UNKNOWN_TIME
from model.artefact import Artefact, load_artefact, save_artefact
from tests.service.processes import BASE_MS, in_process, make_artefact, offline_scores
from tests.service.test_api import problem

ITEMS = [f"i{n}" for n in range(20)]
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("explanation") / "model", ITEMS)


async def _post(client: httpx.AsyncClient, user: str, events: list[tuple[str, int]]) -> None:
    for item, ms in events:
        body = {"user_id": user, "item_id": item, "timestamp": ms}
        assert (await client.post("/interactions", json=body)).status_code == 200


async def _explained(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get("/recommend", params={"explain": True, **query})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_answer_says_what_moved_its_scores(artefact: Artefact, store_url: str, run: Any) -> None:
    """Also of a history longer than what is tried, with items that the model does not know."""
    events = [
        (f"i{n * n % 13}" if n % 5 else "strange", BASE_MS + n * n * 60_000) for n in range(30)
    ]
    at = events[-1][1] + HOUR_MS

    async def go() -> None:
        async with in_process(artefact.folder, store_url, explain_events=8) as client:
            await _post(client, "ann", events)
            asked = {"user_id": "ann", "k": 5, "at": at}
            answer = await _explained(client, **asked, reasons=20)
            plain = (await client.get("/recommend", params=asked)).json()
            because = [item.pop("because") for item in answer["items"]]
            assert answer == plain
            known = [n for n, (item, _) in enumerate(events) if item != "strange"][-8:]
            whole = offline_scores(artefact, events, at)
            for item, reasons in zip(answer["items"], because, strict=True):
                assert {reason["version"] for reason in reasons} == {n + 1 for n in known}
                for reason in reasons:
                    place = reason["version"] - 1
                    assert reason["item_id"] == events[place][0]
                    without = offline_scores(artefact, events[:place] + events[place + 1 :], at)
                    expected = whole[item["item_id"]] - without[item["item_id"]]
                    assert reason["contribution"] == pytest.approx(expected, abs=1e-4)
                sizes = [abs(reason["contribution"]) for reason in reasons]
                assert sizes == sorted(sizes, reverse=True)
            short = await _explained(client, **asked)
            for item, reasons in zip(short["items"], because, strict=True):
                assert item["because"] == reasons[:3]
            unknown = await _explained(client, user_id="ann", k=5, at="unknown", reasons=20)
            whole = offline_scores(artefact, events, UNKNOWN_TIME)
            for item in unknown["items"]:
                place = item["because"][0]["version"] - 1
                left = events[:place] + events[place + 1 :]
                without = offline_scores(artefact, left, UNKNOWN_TIME)[item["item_id"]]
                expected = whole[item["item_id"]] - without
                assert item["because"][0]["contribution"] == pytest.approx(expected, abs=1e-4)
            now = await _explained(client, user_id="ann", k=1)
            assert len(now["items"][0]["because"]) == 3
            session = {
                "events": [{"item_id": item, "timestamp": ms} for item, ms in events],
                "k": 5, "at": at, "explain": True, "reasons": 20,
            }  # fmt: skip
            looked_at = (await client.post("/recommend/session", json=session)).json()
            assert [item["because"] for item in looked_at["items"]] == because
            problem(await client.post("/recommend/session", json=session | {"k": 21}), 422, "k")
            stranger = await _explained(client, user_id="nobody", k=2)
            assert all("because" not in item for item in stranger["items"])
            problem(await client.get("/recommend?user_id=ann&k=21&explain=true"), 422, "k")
            problem(await client.get("/recommend?user_id=ann&explain=1&reasons=0"), 422, "reasons")

    run(go())


def test_what_the_user_has_had_is_weighed(
    artefact: Artefact, store_url: str, run: Any, tmp_path: Path
) -> None:
    """Without its only interaction an item is not weighed as one that the user has had."""
    model = load_artefact(artefact.folder).model
    model.repeat_bias = 5.0
    save_artefact(tmp_path / "biased", model, artefact.items, {}, "")
    events = [("i1", BASE_MS), ("i2", BASE_MS + HOUR_MS), ("i1", BASE_MS + 2 * HOUR_MS)]
    at = BASE_MS + 3 * HOUR_MS

    async def go() -> None:
        async with in_process(tmp_path / "biased", store_url) as client:
            await _post(client, "ann", events)
            answer = await _explained(client, user_id="ann", k=2, at=at, exclude_seen=False)
            assert {item["item_id"] for item in answer["items"]} == {"i1", "i2"}
            for item in answer["items"]:
                whole = offline_scores(artefact, events, at)[item["item_id"]]
                assert item["score"] == pytest.approx(whole + 5, abs=1e-4)
                for reason in item["because"]:
                    place = reason["version"] - 1
                    left = events[:place] + events[place + 1 :]
                    without = offline_scores(artefact, left, at)[item["item_id"]]
                    lost = 5 if item["item_id"] == "i2" and place == 1 else 0
                    assert reason["contribution"] == pytest.approx(whole - without + lost, abs=1e-4)

    run(go())


def test_explanations_wait_for_each_other_and_nobody_else(
    artefact: Artefact, store_url: str, run: Any
) -> None:
    async def go() -> None:
        async with in_process(artefact.folder, store_url) as client:
            await _post(client, "ann", [(f"i{n}", BASE_MS + n) for n in range(8)])
            explainer = client._transport.app.api.state.services.explainer
            begun, goes_on = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()

            def hold() -> None:
                loop.call_soon_threadsafe(begun.set)
                asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result()

            explainer._thread.submit(hold)
            await begun.wait()
            waiting = [asyncio.create_task(_explained(client, user_id="ann")) for _ in range(16)]
            while explainer._waiting < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            refused = await client.get("/recommend?user_id=ann&explain=true")
            assert "nothing was done" in problem(refused, 503)["detail"]
            assert (await client.get("/recommend?user_id=ann")).status_code == 200
            assert not any(task.done() for task in waiting)
            goes_on.set()
            answers = await asyncio.gather(*waiting)
            assert all(answer["items"][0]["because"] for answer in answers)
            metrics = (await client.get("/metrics")).text
            assert 'tim4rec_refused_requests_total{reason="explanations"}' in metrics
            assert 'stage="explain"' in metrics

    run(go())


def test_a_history_that_changes_meanwhile(artefact: Artefact, store_url: str, run: Any) -> None:
    async def go() -> None:
        async with in_process(artefact.folder, store_url) as client:
            await _post(client, "ann", [("i1", BASE_MS), ("i2", BASE_MS + 1)])
            services = client._transport.app.api.state.services
            explain = services.explainer.explain

            async def erased_before(*given: Any, **options: Any) -> Any:
                await client.delete("/users/ann")
                await _post(client, "ann", [("i3", BASE_MS), ("i4", BASE_MS + 1)])
                return await explain(*given, **options)

            services.explainer.explain = erased_before
            answer = await client.get("/recommend?user_id=ann&explain=true")
            assert "changed" in problem(answer, 503)["detail"]
            assert np.isfinite(float(answer.headers["retry-after"]))

    run(go())

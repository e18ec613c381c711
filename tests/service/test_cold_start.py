"""Items that are newer than the model have vectors, and change no state."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from model.artefact import Artefact, save_artefact
from model.content import About, Content, feature_hashes
from model.items import Items
from model.scoring import Scoring
from service.catalogue import cold_start
from service.catalogue.cold_start import PENALTY, summed
from service.catalogue.turns import at_once
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS, check_answer, in_process, make_artefact, offline_scores
from tests.training.logs import KINDS, kinds_log, table_of
from training.forward.models import Served
from training.new_items import with_new_items

Run = Callable[[Coroutine[Any, Any, Any]], Any]

TABLE = np.array([[1, 0], [0, 3], [2, 2], [-4, 0]], np.float32)
CATEGORIES = [["one"], [], ["one", "three"], ["two", "one"]]


def regressed(values: np.ndarray, categories: list[list[str]], own: list[str]) -> np.ndarray:
    """What a ridge regression from categories says of values (V, ...), in its plainest form."""
    names = sorted({name for one in categories for name in one})
    table = np.array([[name in one for name in names] for one in categories], float)
    centred, mean = table - table.mean(0), values.mean(0)
    gram = centred.T @ centred + PENALTY * np.eye(len(names))
    weights = np.linalg.inv(gram) @ centred.T @ (values - mean)
    return mean + (np.array([name in own for name in names]) - table.mean(0)) @ weights


def test_the_vector_of_a_new_item() -> None:
    cold = at_once(summed(TABLE, lambda row: CATEGORIES[row - 1]))()
    # As long as theirs are, on the mean.
    found = cold.vector([1, 2], ["one"])
    np.testing.assert_allclose(found, 2 * np.array([0.5, 1.5]) / np.hypot(0.5, 1.5), rtol=1e-6)
    np.testing.assert_allclose(cold.vector([3], []), TABLE[2])
    np.testing.assert_allclose(cold.vector([1, 4], ["two"]), [-2.5, 0], rtol=1e-6)
    for own in (["one"], ["two"], ["one", "two", "three", "unknown"], ["three", "three"]):
        expected = regressed(TABLE, CATEGORIES, own)
        np.testing.assert_allclose(cold.vector([], own), expected, rtol=1e-4)
        assert np.abs(expected - TABLE.mean(0)).max() > 0.01
    for nothing in ([], ["unknown"]):
        np.testing.assert_allclose(cold.vector([], nothing), TABLE.mean(0))


def test_a_large_catalogue_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start, "MOST_ITEMS", 100)
    monkeypatch.setattr(cold_start, "MOST_CATEGORIES", 2)
    table = np.random.default_rng(0).standard_normal((250, 3)).astype(np.float32)
    categories = [["a"] if n % 2 else ["b", "a"] if n % 5 else ["rare"] for n in range(250)]
    cold = at_once(summed(table, lambda row: categories[row - 1]))()
    sampled = [[name for name in own if name != "rare"] for own in categories[::3]]
    for own in (["a"], ["b"], ["a", "b"]):
        found = cold.vector([], own) - table.mean(0)
        expected = regressed(table[::3], sampled, own) - table[::3].mean(0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(cold.vector([], ["rare"]), table.mean(0))


def test_without_categories_all_new_items_are_average() -> None:
    cold = at_once(summed(TABLE, lambda row: []))()
    np.testing.assert_allclose(cold.vector([], ["one"]), TABLE.mean(0))


IDS = [f"i{n}" for n in range(30)]
EVENTS = [("i1", BASE_MS), ("i2", BASE_MS + 5000)]
AT = BASE_MS + 10**6


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("cold") / "model"
    made = make_artefact(folder, IDS)
    categories = [["odd"] if n % 2 else ["even"] for n in range(30)]
    save_artefact(folder, made.model, Items(IDS, made.items.popularity, None, categories), {}, "x")
    return made


def test_new_items_are_recommended_until_the_next_training(
    run: Run, artefact: Artefact, valkey: ValkeyServer
) -> None:
    scores = offline_scores(artefact, EVENTS, AT)
    categories = [["odd"] if n % 2 else ["even"] for n in range(30)]
    values = np.array([scores[item] for item in IDS])
    expected = scores | {
        "like i4": scores["i4"],
        "like none": float(np.mean(list(scores.values()))),
        "odd": float(regressed(values, categories, ["odd"])),
    }

    async def main() -> None:
        async with in_process(artefact.folder, valkey.url, exactness_every_s=0) as client:
            for item, ms in EVENTS:
                event = {"user_id": "ann", "item_id": item, "timestamp": ms}
                (await client.post("/interactions", json=event)).raise_for_status()
            records = [
                {"item_id": "like i4", "similar_to": ["i4", "unknown"], "categories": ["odd"]},
                {"item_id": "like none"},
                {"item_id": "odd", "categories": ["odd"]},
            ]
            (await client.post("/items/batch", json={"items": records})).raise_for_status()
            query = {"user_id": "ann", "k": 50, "at": AT, "exclude_seen": False}
            answer = (await client.get("/recommend", params=query)).json()
            check_answer(answer, expected, 50)
            paths = {item["item_id"]: item["path"] for item in answer["items"]}
            assert {
                item for item, path in paths.items() if path == "cold"
            } == expected.keys() - scores
            # What trained items are said to be counts for new ones, whichever was said first.
            await client.put("/items/i0", json={"categories": ["odd"]})
            categories[0] = ["odd"]
            expected["odd"] = float(regressed(values, categories, ["odd"]))
            check_answer((await client.get("/recommend", params=query)).json(), expected, 50)

            event = {"user_id": "ann", "item_id": "odd", "timestamp": AT}
            posted = (await client.post("/interactions", json=event)).json()
            assert posted["status"] == "unknown_item"
            again = (await client.get("/recommend", params=query)).json()
            assert again["version"] == 3
            check_answer(again, expected, 50)

    run(main())


def described(item: dict[str, Any]) -> About:
    values = {name: own for name, own in item.get("attributes", {}).items()}
    return About(item.get("title"), item.get("categories", ()), values)


@pytest.mark.parametrize("biases", [False, True])
def test_new_items_are_scored_by_the_content_at_once(
    run: Run, artefact: Artefact, valkey: ValkeyServer, tmp_path: Path, biases: bool
) -> None:
    """Of a model with a content, what an item is decides, not what others like it have learned."""
    records: list[dict[str, Any]] = [
        {"item_id": "both", "title": "Red Shoes", "categories": ["odd"]},
        {"item_id": "words", "title": "shoes, RED"},
        {"item_id": "strange", "title": "nothing that was ever said"},
        {"item_id": "coloured", "attributes": {"colour": ["red", "blue"]}},
    ]
    draw = np.random.default_rng(0)
    hashes = np.unique(
        [
            own
            for one in (*map(described, records[:2]), About(values={"colour": ["red", "blue"]}))
            for own in feature_hashes(one)
        ]
    )
    width = artefact.model.config.d_model
    vectors = draw.normal(size=(len(hashes), width)).astype(np.float32)
    content = Content(hashes, vectors, draw.normal(size=width).astype(np.float32), 0.7)
    made = make_artefact(tmp_path / "base", IDS)
    model = made.model
    if biases:
        bias = torch.from_numpy(draw.normal(size=31).astype(np.float32))
        model.scoring = Scoring(made.items, model.item_embedding.weight.detach(), bias)
    model.content = content
    save_artefact(tmp_path / "model", model, made.items, {}, "x")
    new = {one["item_id"]: content.vector(described(one)) for one in records}
    listing = with_new_items(Served(model, IDS), new)
    expected = offline_scores(replace(made, model=listing.model), EVENTS, AT)
    assert len({round(expected[item], 4) for item in new}) == len(new)

    async def main() -> None:
        folder = tmp_path / "model"
        async with in_process(folder, valkey.url, exactness_every_s=0) as client:
            for item, ms in EVENTS:
                event = {"user_id": "ann", "item_id": item, "timestamp": ms}
                (await client.post("/interactions", json=event)).raise_for_status()
            body = {"items": [*records, {"item_id": "like i4", "similar_to": ["i4"]}]}
            (await client.post("/items/batch", json=body)).raise_for_status()
            query = {"user_id": "ann", "k": 50, "at": AT, "exclude_seen": False}
            if not biases:
                expected["like i4"] = expected["i4"]
            answer = (await client.get("/recommend", params=query)).json()
            answer["items"] = [
                item for item in answer["items"] if not biases or item["item_id"] != "like i4"
            ]
            check_answer(answer, expected, 50)
            # Items like it are those of the model that point where its features do.
            table = model.scoring_vectors.detach().numpy()[1:, :width]
            own = content.part_of(described(records[0]))
            cosines = table @ own / np.linalg.norm(table, axis=1) / np.linalg.norm(own)
            like = (await client.get("/items/both/similar", params={"k": 5})).json()["items"]
            assert [one["item_id"] for one in like] == [
                IDS[row] for row in np.argsort(-cosines)[:5]
            ]
            assert [one["score"] for one in like] == pytest.approx(np.sort(cosines)[::-1][:5])
            (first,) = (await client.get("/items/like i4/similar", params={"k": 1})).json()["items"]
            assert first["item_id"] == "i4"
            # An item that is described otherwise has another vector.
            await client.put("/items/strange", json={"title": "red shoes", "categories": ["odd"]})
            expected["strange"] = expected["both"]
            answer = (await client.get("/recommend", params=query)).json()
            answer["items"] = [
                item for item in answer["items"] if not biases or item["item_id"] != "like i4"
            ]
            check_answer(answer, expected, 50)

    run(main())


def test_a_new_item_reaches_those_whom_it_is_for(
    run: Run, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """From a log and an item table to a service that is told of items a moment ago."""
    log = kinds_log()
    rows = log.frame.select("user_id", "item_id", timestamp="time_ms")
    rows.write_csv(tmp_path / "interactions.csv")
    table = table_of(log).with_columns(pl.col("categories").list.join("|"))
    table.write_csv(tmp_path / "items.csv")
    trained = CliRunner().invoke(
        app,
        [
            "train", str(tmp_path / "interactions.csv"), "--items", str(tmp_path / "items.csv"),
            "--out", str(tmp_path / "model"), "--epochs=4", "--d-model=16", "--d-state=8",
            "--targets=128", "--lr=1e-2", "--threads=1",
        ],
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert "words, categories and values" in (tmp_path / "model" / "README.md").read_text()

    async def main() -> None:
        folder = tmp_path / "model"
        async with in_process(folder, valkey.url, exactness_every_s=0, live=False) as client:
            new = [
                {"item_id": f"new {kind}", "title": f"a fine {kind}", "categories": [kind]}
                for kind in KINDS
            ]
            (await client.post("/items/batch", json={"items": new})).raise_for_status()
            for number, kind in enumerate(KINDS):
                events = [{"user_id": kind, "item_id": f"i{4 * n + number}"} for n in range(20, 24)]
                (await client.post("/interactions/batch", json={"interactions": events}))
                query = {"user_id": kind, "k": 200}
                answer = (await client.get("/recommend", params=query)).json()
                listed = [item["item_id"] for item in answer["items"]]
                assert {one["item_id"] for one in new} <= {*listed}
                first = min((one["item_id"] for one in new), key=listed.index)
                assert first == f"new {kind}"

    run(main())

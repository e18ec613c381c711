"""Attributes in answers, and names that no item has, asked of a real service."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from model.artefact import Artefact, save_artefact
from model.items import Items
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact
from tests.service.test_api import problem

ITEMS = [f"i{n}" for n in range(6)]
CATEGORIES = [["Shoes", "Sale"] if n % 2 else ["Shirts"] for n in range(6)]
RECORDS: dict[str, dict[str, Any]] = {
    "i0": {"price_eur": 12, "tags": ["new"], "size": {"width": 3, "unit": None}, "sold": False},
    "i1": {"price_eur": 9.5, "brand": "Nike", "colour": None, "a,b": "comma", "code": "007"},
    "i2": {"brand": ["Puma", "Nike"]},
}


@pytest.fixture(scope="module")
def client(store: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fields") / "model"
    made: Artefact = make_artefact(folder, ITEMS)
    items = Items(ITEMS, made.items.popularity, [f"Title {n}" for n in range(6)], CATEGORIES)
    save_artefact(folder, made.model, items, {}, "a test")
    service = Service(folder, store.folder / "output", redis_url=store.url, exactness_every_s=0)
    try:
        service.start()
        with service.client() as client:
            batch = [{"item_id": item, "attributes": own} for item, own in RECORDS.items()]
            client.post("/items/batch", json={"items": batch}).raise_for_status()
            event = {"user_id": "known", "item_id": "i5"}
            client.post("/interactions", json=event).raise_for_status()
            yield client
    finally:
        service.kill()


ASKED: list[tuple[str, dict[str, Any] | None]] = [
    ("/recommend?user_id=known&exclude_seen=false", None),
    ("/recommend?user_id=nobody", None),
    ("/items/i5/similar?k=10", None),
    ("/popular?window=all", None),
    ("/items?limit=10", None),
    ("/items?item_id=i0&item_id=i1&item_id=i2", None),
    ("/recommend", {"user_id": "known", "exclude_seen": False}),
    (
        "/recommend/session",
        {"events": [{"item_id": "i5", "timestamp": "2026-01-01"}], "exclude_seen": False},
    ),
    ("/rank", {"user_id": "known", "item_ids": [*ITEMS, "stranger"]}),
]


@pytest.mark.parametrize(("url", "body"), ASKED)
def test_each_item_has_what_is_asked_for(
    client: httpx.Client, url: str, body: dict[str, Any] | None
) -> None:
    fields = ["title", "price_eur", "tags", "size", "colour"]
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat()  # scores move with it
    if body is None:
        url += f"&at={quote(at)}" if url.startswith("/recommend") else ""
        plain, answer = client.get(url), client.get(f"{url}&fields={','.join(fields)}")
    else:
        body = body | {"at": at}
        plain, answer = (
            client.post(url, json=body),
            client.post(url, json=body | {"fields": fields}),
        )
    before, after = plain.raise_for_status().json(), answer.raise_for_status().json()
    assert "warnings" not in before
    assert after["warnings"] == ["no item has an attribute `colour`"]
    for item, with_fields in zip(before["items"], after["items"], strict=True):
        assert "attributes" not in item
        said = RECORDS.get(item["item_id"], {}).items()
        wanted = {name: value for name, value in said if name in ("price_eur", "tags", "size")}
        assert with_fields.pop("attributes") == wanted
        assert with_fields.pop("score", None) == pytest.approx(item.pop("score", None), abs=1e-4)
        assert with_fields == item


def test_categories_and_what_is_within(client: httpx.Client) -> None:
    query = {"user_id": "known", "include": ["i0", "i1"], "fields": "category,size.width"}
    answer = client.get("/recommend", params=query).json()
    assert "warnings" not in answer
    found = {item["item_id"]: item for item in answer["items"]}
    assert found["i0"]["attributes"] == {"size.width": 3, "category": ["Shirts"]}
    assert found["i1"]["attributes"] == {"category": ["Shoes", "Sale"]}


def test_names_may_be_repeated_and_in_a_body_hold_commas(client: httpx.Client) -> None:
    query = {"item_id": "i1", "fields": ["brand, price_eur", "code"]}
    (item,) = client.get("/items", params=query).json()["items"]
    assert item["attributes"] == {"brand": "Nike", "price_eur": 9.5, "code": "007"}
    body = {"user_id": "known", "include": ["i1"], "fields": ["a,b"]}
    (found,) = client.post("/recommend", json=body).json()["items"]
    assert found["attributes"] == {"a,b": "comma"}


@pytest.mark.parametrize("fields", ["", "brand,,code", ",".join(f"f{n}" for n in range(21))])
def test_fields_that_are_none_or_too_many(client: httpx.Client, fields: str) -> None:
    query = {"user_id": "known", "fields": fields}
    document = problem(client.get("/recommend", params=query), 422)
    assert "fields" in document["errors"][0]["field"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"filter": "colour = 'red'"}, ["no item has an attribute `colour`"]),
        ({"filter": "not has(sold_out)"}, ["no item has an attribute `sold_out`: "
                                           "did you mean `sold`?"]),
        ({"filter": "price < 9"}, ["no item has an attribute `price`: did you mean `price_eur`?"]),
        ({"filter": "price_eur < 9 or sold = true or has(size.width)"}, None),
        ({"filter": "has(size)"},
         ["no item has an attribute `size`: did you mean `size.width`?"]),
        ({"filter": 'brand = "nike"'}, ["no item has brand `nike`: did you mean `Nike`?"]),
        ({"filter": 'brand in ("Nike", "Pumma", "x")'},
         ["no item has brand `Pumma`: did you mean `Puma`?", "no item has brand `x`"]),
        ({"filter": 'brand >= "nike"'}, None),
        ({"filter": "code = 7"}, ["no item has a number as code: text stands in quotes"]),
        ({"filter": 'price_eur > "9"'},
         ["no item has text as price_eur: numbers, true and false stand without quotes"]),
        ({"category": "Shos"}, ["no item has category `Shos`: did you mean `Shoes`?"]),
        ({"category": ["Shoes", "Hats"]}, ["no item has category `Hats`"]),
        ({"promote": "has(new)", "filter": "has(new)"}, ["no item has an attribute `new`"]),
        ({"fields": "image", "filter": "image = 'x'"}, ["no item has an attribute `image`"]),
        ({"filter": " or ".join(f"x{n} = 1" for n in range(9))},
         [f"no item has an attribute `x{n}`" for n in range(5)]),
    ],
)  # fmt: skip
def test_what_no_item_has_is_told(
    client: httpx.Client, asked: dict[str, Any], told: list[str] | None
) -> None:
    for _ in range(2):  # a filter is remembered
        query = {"user_id": "known", **asked}
        answer = client.get("/recommend", params=query).raise_for_status().json()
        assert answer.get("warnings") == told


@pytest.mark.parametrize("parameter", ["filter", "promote", "fields"])
@pytest.mark.parametrize("name", ["Price_EUR", "priceEur", "PRICEEUR"])
def test_what_can_only_be_misspelt_is_refused(
    client: httpx.Client, parameter: str, name: str
) -> None:
    value = name if parameter == "fields" else f"{name} < 10"
    query = {"user_id": "known", parameter: value}
    document = problem(client.get("/recommend", params=query), 422, parameter)
    assert document["detail"] == (
        f"{parameter}: no item has an attribute `{name}`: did you mean `price_eur`?"
    )


def test_what_an_item_gets_is_no_longer_told(client: httpx.Client) -> None:
    query = {"user_id": "known", "filter": "material = 'wool'"}
    told = ["no item has an attribute `material`"]
    assert client.get("/recommend", params=query).json()["warnings"] == told
    client.put("/items/i4", json={"attributes": {"material": "wool"}}).raise_for_status()
    answer = client.get("/recommend", params=query).json()
    assert [item["item_id"] for item in answer["items"]] == ["i4"]
    assert "warnings" not in answer
    client.delete("/items/i4").raise_for_status()
    assert client.get("/recommend", params=query).json()["warnings"] == told


def test_a_list_without_items_tells_of_its_category(client: httpx.Client) -> None:
    page = client.get("/items", params={"category": "Shos"}).json()
    told = ["no item has category `Shos`: did you mean `Shoes`?"]
    assert page == {"items": [], "next": None, "warnings": told}
    assert "warnings" not in client.get("/items", params={"category": ["Shos", "Shoes"]}).json()

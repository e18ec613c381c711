"""The documentation of the routes: what it says of each, and that its examples work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.service.conftest import ValkeyServer
from tests.service.processes import in_process, make_artefact

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_examples_work_as_they_stand(tmp_path: Path, valkey: ValkeyServer, run: Run) -> None:
    artefact = make_artefact(tmp_path / "shop-2026-10", ["50", "181", "100"])
    make_artefact(tmp_path / "shop-2026-11", ["50", "181", "100"], seed=1)

    async def check() -> None:
        async with in_process(
            artefact.folder, valkey.url, admin_keys="admin", models_dir=tmp_path,
            outcome_window_s=60,
        ) as client:  # fmt: skip
            document = (await client.get("/openapi.json")).json()
            schemas, tried = document["components"]["schemas"], set()
            for path, methods in document["paths"].items():
                body = methods.get("post", {}).get("requestBody")
                if body is None:
                    continue
                name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                for given in schemas[name]["examples"]:
                    if "edition" in given:  # that of the example is another model's
                        given |= {"edition": artefact.edition}
                    answer = await client.post(path, json=given, headers={"X-API-Key": "admin"})
                    assert answer.is_success, (path, answer.text)
                    tried.add(path)
            assert {"/interactions", "/recommend", "/admin/model"} <= tried

    run(check())


def test_every_route_says_what_it_is_for(tmp_path: Path, valkey: ValkeyServer, run: Run) -> None:
    """In a person's words, each its own; not the name of its function."""
    artefact = make_artefact(tmp_path / "model", ["a"])

    async def check() -> None:
        async with in_process(artefact.folder, valkey.url) as client:
            paths = (await client.get("/openapi.json")).json()["paths"]
            routes = [route for methods in paths.values() for route in methods.values()]
            said = [route["summary"] for route in routes]
            assert len(set(said)) == len(said)
            for route in routes:
                function = route["operationId"].replace("_", " ").lower()
                assert not function.startswith(route["summary"].lower()), route["summary"]

    run(check())

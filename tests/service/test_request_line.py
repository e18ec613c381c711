"""Paths under a proxy's prefix, and HEAD."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.artefact import Artefact
from service.addresses import host_name, is_local, networks
from service.app import create_app
from service.environment import SettingsError, read_settings
from service.settings import Settings
from tests.service.processes import in_process, make_artefact


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("line") / "m", ["a", "b", "c"])


def test_head_is_get_without_its_body(run: Any, artefact: Artefact, store_url: str) -> None:
    async def check() -> None:
        models = artefact.folder.parent
        async with in_process(
            artefact.folder, store_url, admin_keys="secret", models_dir=models
        ) as client:
            client.headers["X-API-Key"] = "secret"
            await client.post("/interactions", json={"user_id": "head", "item_id": "a"})
            document = (await client.get("/openapi.json")).json()
            paths = ["/", "/docs", "/metrics", "/openapi.json", "/page/main.js", "/nowhere"]
            paths += [
                path.replace("{user_id}", "head").replace("{item_id}", "a")
                for path, methods in document["paths"].items()
                if "get" in methods
            ]
            assert "/admin/model" in paths
            for path in paths:
                query = {"user_id": "head"} if path == "/recommend" else {}
                get = await client.get(path, params=query)
                head = await client.head(path, params=query)
                assert head.status_code == get.status_code, path
                assert head.content == b""
                assert head.headers["content-type"] == get.headers["content-type"]
            head = await client.head("/interactions")
            assert head.status_code == 405
            assert head.headers["allow"] == "POST"

    run(check())


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("forwarded", [True, False])
def test_all_works_under_a_prefix(
    run: Any, artefact: Artefact, store_url: str, strips: bool, forwarded: bool
) -> None:
    async def check() -> None:
        settings = {} if forwarded else {"root_path": "/shop/rec"}
        async with in_process(artefact.folder, store_url, **settings) as client:
            if forwarded:
                client.headers["X-Forwarded-Prefix"] = "/shop/rec/"

            async def get(path: str) -> httpx.Response:
                # As a proxy hands it on; a browser asks for all of it.
                assert path.startswith("/shop/rec"), path
                inner = path.removeprefix("/shop/rec") if strips else path
                found: httpx.Response = await client.get(inner or "/")
                return found

            docs = await get("/shop/rec/docs")
            links = set(re.findall(r"""['"](/[^'"]*)['"]""", docs.text))
            assert "/shop/rec/openapi.json" in links
            for link in links - {"/docs/oauth2-redirect"}:
                assert (await get(link)).status_code == 200, link
            assert (await get("/shop/rec/openapi.json")).json()["servers"] == [{"url": "/shop/rec"}]
            page = await get("/shop/rec/")
            assert page.status_code == 200
            for link in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
                assert (await get(str(httpx.URL("http://x/shop/rec/").join(link).path))).is_success
            assert (await get("/shop/rec/recommend?user_id=u")).status_code == 200
            moved = await get("/shop/rec/recommend/?user_id=u")
            assert moved.status_code == 307
            target = httpx.URL(moved.headers["location"])
            assert target.path == "/shop/rec/recommend"
            if not strips:
                bare = await get("/shop/rec")
                assert bare.headers["location"] == "/shop/rec/"

    run(check())


def test_a_stranger_names_no_prefix(run: Any, artefact: Artefact, store_url: str) -> None:
    async def check() -> None:
        app = create_app(
            Settings(artefact=artefact.folder, redis_url=store_url, trusted_proxies=("10.0.0.0/8",))
        )
        async with app.api.router.lifespan_context(app.api):
            for address, trusted in (("10.1.2.3", True), ("192.0.2.1", False)):
                transport = httpx.ASGITransport(app, client=(address, 1))
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://localhost"
                ) as client:
                    headers = {"X-Forwarded-Prefix": "/evil"}
                    text = (await client.get("/docs", headers=headers)).text
                    assert ("/evil/openapi.json" in text) == trusted
                    headers = {"X-Forwarded-Prefix": "//evil.example/<script>"}
                    assert "evil" not in (await client.get("/docs", headers=headers)).text

    run(check())


def test_hosts_of_a_service_without_keys(run: Any, artefact: Artefact, store_url: str) -> None:
    async def check() -> None:
        async def status(client: Any, host: str) -> int:
            answer = await client.get("/users/nobody", headers={"Host": host})
            return int(answer.status_code)

        named = {"allowed_hosts": ("Shop.example",)}
        async with in_process(artefact.folder, store_url, **named) as client:
            for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "10.0.0.7:80", "a.localhost",
                         "shop.example:443", "SHOP.EXAMPLE"):  # fmt: skip
                assert await status(client, host) == 404, host
            for host in ("evil.example", "localhost.evil.example", "shop.example.evil.example",
                         "127.0.0.1.evil.example", "evil.example:8000",
                         "127.0.0.1:80.evil.example", "[::1].evil.example", "127.0.0.1%x",
                         "[::1", "localhost:80:80"):  # fmt: skip
                assert await status(client, host) == 421, host
        async with in_process(artefact.folder, store_url, api_keys="secret") as client:
            assert await status(client, "evil.example") == 401
        async with in_process(artefact.folder, store_url, allowed_hosts="*") as client:
            assert await status(client, "evil.example") == 404

    run(check())


@pytest.mark.parametrize(
    ("host", "name", "local"),
    [("a:1", "a", False), ("[::1]:80", "::1", True), ("::1", "::1", True), ("A", "a", False),
     ("LOCALHOST.", "localhost.", True), ("1.2.3.4:5", "1.2.3.4", True), ("", "", False),
     ("fe80::1%eth0", "fe80::1%eth0", True), ("1.2.3", "1.2.3", False)],
)  # fmt: skip
def test_names_of_hosts(host: str, name: str, local: bool) -> None:
    assert host_name(host) == name
    assert is_local(name) == local


@pytest.mark.parametrize(
    ("name", "value"),
    [("root_path", "rec"), ("root_path", "/a/"), ("root_path", "/a b"), ("root_path", "//a"),
     ("trusted_proxies", "proxy.example"), ("trusted_proxies", "10.0.0.0/99")],
)  # fmt: skip
def test_settings_that_are_none(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": Path(), name: value})
    assert name.replace("_", "-") in str(raised.value)


def test_networks() -> None:
    assert networks(["*", "10.0.0.1"]) is None
    assert [str(one) for one in networks(["10.0.0.1", "10.0.0.9/8"]) or ()] == [
        "10.0.0.1/32",
        "10.0.0.0/8",
    ]

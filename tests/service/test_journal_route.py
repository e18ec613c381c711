"""GET /admin/journal: what a learner wrote beside the models, as the service tells it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from model.artefact import Artefact
from model.journal import FILE, Entry
from tests.service.conftest import ValkeyServer
from tests.service.processes import in_process, make_artefact

Run = Callable[[Coroutine[Any, Any, Any]], Any]
KEY = {"X-API-Key": "admin"}
AT = "2026-01-31T12:00:00.000Z"


def make(folder: Path) -> Artefact:
    return make_artefact(folder / "models" / "a", ["a", "b"])


def test_the_newest_entries(valkey: ValkeyServer, run: Run, tmp_path: Path) -> None:
    """Newest first, at most so many, and none that is cut off or that says what can't be."""
    artefact, models = make(tmp_path), tmp_path / "models"
    said = [Entry(AT, "published", model=f"m{n}", step="warm", events=n) for n in range(5)]
    judged = Entry(AT, "refused", figures={"difference": {"HR@10": float("nan")}})
    foreign = b'{"at": 3, "what": "nonsense"}\n[]\nno JSON\n'
    (models / FILE).write_bytes(
        b"".join(one.line for one in [*said, judged]) + foreign + said[0].line[:-9]
    )

    async def check() -> None:
        async with in_process(
            artefact.folder, valkey.url, admin_keys="admin", models_dir=models
        ) as client:
            found = (await client.get("/admin/journal", headers=KEY)).json()["entries"]
            assert [one["model"] for one in found] == [None, "m4", "m3", "m2", "m1", "m0"]
            assert found[0]["figures"] == {"difference": {"HR@10": None}}
            assert found[1] == found[1] | {"what": "published", "step": "warm", "events": 4}
            some = await client.get("/admin/journal", params={"limit": 5}, headers=KEY)
            assert [one["model"] for one in some.json()["entries"]] == [None, "m4"]
            for limit in (0, 1001):
                wrong = await client.get("/admin/journal", params={"limit": limit}, headers=KEY)
                assert wrong.status_code == 422
            (models / FILE).unlink()
            nothing = await client.get("/admin/journal", headers=KEY)
            assert nothing.json() == {"entries": []}
            (models / FILE).mkdir()
            assert (await client.get("/admin/journal", headers=KEY)).status_code == 503

    run(check())


def test_it_wants_an_admin_key_and_a_folder(valkey: ValkeyServer, run: Run, tmp_path: Path) -> None:
    artefact = make(tmp_path)

    async def check() -> None:
        async with in_process(
            artefact.folder, valkey.url, admin_keys="admin", api_keys="key"
        ) as client:
            assert (await client.get("/admin/journal")).status_code == 401
            other = await client.get("/admin/journal", headers={"X-API-Key": "key"})
            assert other.status_code == 401
            assert (await client.get("/admin/journal", headers=KEY)).status_code == 409

    run(check())

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from service import keys
from service.environment import SettingsError, read_settings
from service.http import problems
from service.http.access_control import AccessControl
from service.keys import Keys
from service.settings import Settings
from tests.service.processes import Service, make_artefact
from tests.waited import until


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of keys are looked at with every request."""
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.0)


def sent(key: str) -> str:
    """A key as the server hands over the header's bytes."""
    return key.encode().decode("latin-1")


@given(st.lists(st.text(min_size=1)), st.text(min_size=1))
def test_only_keys_are_keys(given_: list[str], other: str) -> None:
    found = Keys(given_)
    assert bool(found) == bool(given_)
    for one in given_:
        assert found.have(sent(one))
        assert found.have(sent(one + "x")) == (one + "x" in given_)
        assert found.have(sent(one[:-1])) == (one[:-1] in given_)
    assert found.have(sent(other)) == (other in given_)
    assert not found.have(None)
    assert not found.have("")


def test_a_file_is_read_again(
    tmp_path: Path, looking: None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the shop\n one \n\ntwo\r\n#three\n", "utf-8")
    found = Keys(["always"], file)

    def known() -> set[str]:
        every = ("always", "one", "two", "#three", "three", "# of the shop", "four", "fünf", "")
        return {key for key in every if found.have(sent(key))}

    assert known() == {"always", "one", "two"}
    file.write_text("two\nfour\nfünf", "utf-8")
    assert known() == {"always", "two", "four", "fünf"}
    # In place of another one, as Kubernetes changes a secret; of the same size and time.
    other = tmp_path / "other"
    other.write_text("one\nfour\nfünf", "utf-8")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert known() == {"always", "one", "four", "fünf"}
    caplog.set_level(logging.ERROR, "service.keys")
    for spoil in (lambda: file.write_text("# nobody\n"), file.unlink, lambda: file.mkdir()):
        caplog.clear()
        spoil()
        for _ in range(3):
            assert known() == {"always", "one", "four", "fünf"}
        assert len(caplog.records) <= 1, "it is said every time"
    file.rmdir()
    file.write_bytes(b"\xffsecret")
    assert known() == {"always", "one", "four", "fünf"}
    assert "secret" not in caplog.text
    file.write_text("five")
    assert known() == {"always"}
    assert found.have("five")


def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, looking: None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("one")
    found = Keys((), file)
    caplog.set_level(logging.ERROR, "service.keys")
    for said, put in (
        ("is a FIFO", os.mkfifo),
        ("is a device", lambda path: path.symlink_to("/dev/zero")),
        ("at most 1,048,576", lambda path: path.write_bytes(b"k\n" * (1 << 20))),
    ):
        file.unlink()
        put(file)
        for _ in range(2):
            assert found.have("one")
            assert not found.have("k")
        with pytest.raises(ValueError, match=said):
            keys.check(file)
    assert len(caplog.records) == 1
    file.unlink()
    (tmp_path / "..data").mkdir()  # as Kubernetes mounts a secret
    (tmp_path / "..data" / "keys").write_text("two")
    file.symlink_to(Path("..data", "keys"))
    assert found.have("two")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory; give a file with a key a line"),
        (b"", "holds no key; give a key a line"),
        (b"#hunter2\n\n", "holds no key; give a key a line"),
        (b"hunter2\xff", "is not UTF-8; give a key a line"),
    ],
)
@pytest.mark.parametrize("name", ["api_keys_file", "admin_keys_file"])
def test_a_file_without_keys_stops_the_start(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": "a", name: str(file)})
    assert str(raised.value) == f"--{name.replace('_', '-')}: {file}: {said}"


def test_admin_is_closed_without_keys_of_its_own() -> None:
    async def ask(admin: list[str], shown: str | None) -> httpx.Response:
        app = FastAPI()
        problems.install(app)

        @app.post("/admin/act")
        async def act() -> str:
            return "done"

        settings = Settings(artefact=Path())
        access_control = AccessControl(
            app, settings=settings, keys=Keys(["user"]), admin_keys=Keys(admin)
        )
        transport = httpx.ASGITransport(access_control)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            headers = {} if shown is None else {"X-API-Key": shown}
            return await client.post("/admin/act", headers=headers)

    for shown in (None, "", "user", "root"):
        assert asyncio.run(ask([], shown)).status_code == 403
    for shown in (None, "", "user", "roo"):
        answer = asyncio.run(ask(["root"], shown))
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("APIKey realm=")
        assert "root" not in answer.text
    assert asyncio.run(ask(["root"], "root")).json() == "done"


@pytest.mark.slow
def test_every_worker_takes_over_a_changed_file(
    store_url: str, folder: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / "model", ["a", "b"])
    file = folder / "keys"
    file.write_text("hunter2")
    service = Service(
        artefact.folder, folder / "output", "--workers", "2", "--api-keys-file", str(file),
        redis_url=store_url,
    )  # fmt: skip

    def statuses(key: str) -> set[int]:
        url = f"{service.url}/users/nobody"
        return {httpx.get(url, headers={"X-API-Key": key}).status_code for _ in range(12)}

    try:
        service.start()
        assert statuses("hunter2") == {404}
        assert statuses("hunter3") == {401}
        new = folder / "new"
        new.write_text("hunter3")
        new.replace(file)
        until(lambda: statuses("hunter3") == {404} and statuses("hunter2") == {401})
    finally:
        service.kill()
    assert "hunter" not in service.said()

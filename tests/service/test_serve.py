"""`tim4rec serve`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from model.artefact import Artefact
from tests.service.processes import Service, free_port, make_artefact
from tests.waited import LONG_S

ITEMS = ['it\'s "the" first $(one) é', *(f"i{n}" for n in range(20))]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("serve") / "model", ITEMS)


def serve(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def refused(result: Result, *parts: str) -> None:
    """In one line, which holds all of `parts`."""
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert result.output.endswith("\n")
    for part in parts:
        assert part in result.output


def test_a_busy_port(artefact: Artefact) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        refused(serve(artefact.folder, "--port", port), f"port {port} is in use")


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("FSYNC", "sometimes", "'always' or 'everysec'"),
        ("MAX_BATCH", "many", "integer"),
        ("SNAPSHOT_PRECISION", "float8", "'float32' or 'float16'"),
        ("STORE_TIMEOUT_S", "0", "greater than 0"),
    ],
)
def test_a_wrong_setting_of_the_environment(
    artefact: Artefact, monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(f"TIM4REC_{name}", value)
    refused(serve(artefact.folder, "--port", free_port()), f"TIM4REC_{name}: ", part)


def test_settings_that_do_not_fit_each_other(
    artefact: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIM4REC_POOL_CAPACITY", "100")
    result = serve(artefact.folder, "--port", free_port())
    refused(result, "error: pool_capacity 100 must be at least 4 x max_batch 128")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_wants_keys(
    artefact: Artefact, tmp_path: Path, host: str
) -> None:
    """Said before anything is looked at; keys of whatever kind, or saying so, are two ways out."""
    port = free_port()
    missing = tmp_path / "no model"
    result = serve(missing, "--port", port, "--host", host)
    refused(result, f"host {host}", "TIM4REC_API_KEYS_FILE", "--allow-open", "TIM4REC_ALLOW_OPEN")
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    if host == "::":
        return
    for way in (["--allow-open"], ["--api-keys", "k"], ["--api-keys-file", keys]):
        refused(serve(missing, "--port", port, "--host", host, *way), str(missing))


def test_one_store_only(
    artefact: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIM4REC_REDIS_URL", "redis://127.0.0.1:1/0")
    result = serve(artefact.folder, "--port", free_port(), "--data-dir", tmp_path)
    refused(result, "--data-dir", "TIM4REC_REDIS_URL", "give one")


@pytest.mark.parametrize(("name", "part"), [("gpuu", "take auto, cpu"), ("cuda:99", "GPUs found")])
def test_a_device_that_is_not_there(artefact: Artefact, name: str, part: str) -> None:
    result = serve(artefact.folder, "--port", free_port(), "--device", name)
    refused(result, f"device {name}: ", part)


def test_kernels_that_cannot_be_used(artefact: Artefact) -> None:
    options = ("--device", "cpu", "--kernels", "triton")
    result = serve(artefact.folder, "--port", free_port(), *options)
    refused(result, "kernels triton: the kernels need a CUDA device, not cpu")


def test_a_misspelt_variable(artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_MAX_BACH", "1")
    refused(serve(artefact.folder), "TIM4REC_MAX_BACH", "did you mean TIM4REC_MAX_BATCH?")


def test_no_artefact(artefact: Artefact, tmp_path: Path) -> None:
    port = free_port()
    refused(serve("--port", port), "TIM4REC_ARTEFACT is not given: folder of the model")
    nowhere = tmp_path / "nowhere"
    refused(serve(nowhere, "--port", port), str(nowhere), "no such folder", "tim4rec train")
    damaged = tmp_path / "damaged"
    shutil.copytree(artefact.folder, damaged)
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"!")
    refused(serve(damaged, "--port", port), "model.safetensors", "damaged")


def test_a_store_that_can_not_be_used(artefact: Artefact, tmp_path: Path) -> None:
    port = free_port()
    away = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    result = serve(artefact.folder, "--port", port, "--redis", away)
    refused(result, "store redis://127.0.0.1:")
    assert "hunter2" not in result.output
    refused(serve(artefact.folder, "--port", port, "--redis", "localhost:6379"), "store URL")
    (tmp_path / "file").touch()
    refused(serve(artefact.folder, "--port", port, "--data-dir", tmp_path / "file"), "file")


@pytest.mark.slow
def test_it_says_that_it_compiles_and_only_when_it_does(artefact: Artefact, folder: Path) -> None:
    service = Service(
        artefact.folder,
        folder / "out",
        "--data-dir",
        str(folder / "state"),
        fresh=True,
        NUMBA_CACHE_DIR=folder / "compiled",
    )

    def told() -> list[str]:
        told = service.logged(logger="service.observe.compilation")
        return [record["message"] for record in told]

    try:
        service.start()
        begun, done = told()[::2], told()[1::2]
        named = [
            re.match(r"compiling (\w+) for this processor \(once, it is", line) for line in begun
        ]
        ended = [re.fullmatch(r"compiled (\w+) in [\d.]+ s", line) for line in done]
        names = [found and found[1] for found in named]
        assert {"step", "query"} <= set(names)
        assert [found and found[1] for found in ended] == names
        service.stop()
        before = len(told())
        service.start()
        assert len(told()) == before
    finally:
        service.kill()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_it_prints_can_be_pasted(artefact: Artefact, folder: Path) -> None:
    service = Service(
        artefact.folder,
        folder / "out",
        "--data-dir",
        str(folder / "state"),
        fresh=True,
        api_keys="a b,$c",
        public_docs=True,
    )
    try:
        service.start()
        until = time.monotonic() + LONG_S
        while len(service.printed()) < 5:
            assert time.monotonic() < until, service.said()
            time.sleep(0.05)
        ready, *lines = service.printed()
        assert ready == f"Ready on {service.url}. Paste any of these:"
        assert len(lines) == 4
        assert lines.pop() == f"Or try it in a browser: {service.url}/"

        def paste(line: str) -> dict[str, object]:
            done = subprocess.run(
                ["bash", "-c", line],
                env={"PATH": "/usr/bin:/bin:/usr/local/bin", "TIM4REC_API_KEY": "$c"},
                capture_output=True,
                check=True,
                timeout=30,
            )
            answer: dict[str, object] = json.loads(done.stdout)
            return answer

        posted = paste(lines[0])
        assert posted["status"] == "applied", posted
        assert posted["item_id"] == ITEMS[0]
        answer = paste(lines[1])
        assert answer["source"] == "model"
        assert answer["version"] == 1
        assert isinstance(answer["items"], list)
        assert len(answer["items"]) == 10
        # A browser is no part of a test; what it would open is.
        command, address = lines[2].rsplit(" ", 1)
        assert command.endswith(" -m webbrowser")
        assert address == f"{service.url}/docs"
        page = httpx.get(address)
        assert page.status_code == 200
        assert "swagger" in page.text.lower()
        assert service.stop() == 0
    finally:
        service.kill()

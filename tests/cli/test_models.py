"""`tim4rec models`, and commands whose artefact lies in an object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.artefact import CONFIG, WEIGHTS, load_artefact
from tests.cli.conftest import ITEMS, Write, tim4rec
from tests.s3_server import BUCKET, SECRET, S3Server
from tests.service.conftest import ValkeyServer


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture(params=["folder", "s3"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    monkeypatch.setenv("TIM4REC_DATA_DIR", str(tmp_path / "data"))
    if request.param == "folder":
        return str(tmp_path / "models")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.make_bucket()
    return f"s3://{BUCKET}/models"


def test_from_where_it_was_trained_to_another_machine(
    place: str, model_folder: Path, tmp_path: Path
) -> None:
    edition = load_artefact(model_folder).edition
    for _ in range(2):
        result = tim4rec("models", "publish", place, model_folder)
        assert (result.exit_code, result.stdout) == (0, f"{place}: model\n")
    assert tim4rec("models", "publish", place, model_folder, "other").exit_code == 0
    lines = tim4rec("models", "list", place).stdout.splitlines()
    assert sorted(lines) == [f"model  {edition}", f"other  {edition}"]
    result = tim4rec("models", "fetch", place, "model")
    folder = Path(result.stdout.strip())
    assert load_artefact(folder).edition == edition
    if "s3:" in place:
        assert folder == tmp_path / "data" / "models" / edition / "model"
        result = tim4rec("models", "fetch", place, "model", "--out", tmp_path / "here")
        assert result.stdout.strip() == str(tmp_path / "here" / edition / "model")
    assert tim4rec("models", "remove", place, "model").exit_code == 0
    assert tim4rec("models", "list", place).stdout.splitlines() == [f"other  {edition}"]


def test_what_is_wrong_is_one_line(place: str, model_folder: Path, tmp_path: Path) -> None:
    tim4rec("models", "publish", place, model_folder)
    damaged = Path(shutil.copytree(model_folder, tmp_path / "damaged"))
    (damaged / WEIGHTS).write_bytes(b"")
    for said, arguments in (
        ("no model 'nothing'" if "s3:" in place else "no folder 'nothing'",
         ["fetch", place, "nothing"]),
        ("without a slash", ["fetch", place, "../model"]),
        ("without a slash", ["remove", place, "../model"]),
        ("no model 'nothing'", ["remove", place, "nothing"]),
        ("without a slash", ["publish", place, model_folder, "a/b"]),
        ("damaged", ["publish", place, damaged]),
        (CONFIG, ["publish", place, tmp_path / "nothing"]),
        ("credentials come from the environment", ["list", f"s3://a:{SECRET}@{BUCKET}/models"]),
    ):  # fmt: skip
        result = tim4rec("models", *arguments)
        assert result.exit_code == 1, arguments
        assert said in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert SECRET not in result.stderr
    assert len(tim4rec("models", "list", place).stdout.splitlines()) == 1


def test_commands_take_its_url(
    place: str, model_folder: Path, write: Write, valkey: ValkeyServer
) -> None:
    tim4rec("models", "publish", place, model_folder)
    rows = [
        (f"u{u}", item, 1_700_000_000 + 60 * n)
        for u in range(8)
        for n, item in enumerate(ITEMS[u : u + 6])
    ]
    log = write(rows)
    one, other = (
        tim4rec("evaluate", artefact, log, "--core", "1", "--mode", "parallel")
        for artefact in (f"{place}/model", model_folder)
    )
    assert one.exit_code == other.exit_code == 0, one.output
    assert one.stdout == other.stdout
    assert tim4rec("import-log", log, "--redis", valkey.url).exit_code == 0
    result = tim4rec("warm", f"{place}/model", "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "8 snapshots written" in result.output
    result = tim4rec("warm", f"{place}/nothing", "--redis", valkey.url)
    assert result.exit_code == 1
    assert "nothing" in result.stderr

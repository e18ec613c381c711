"""The kind rules of a model: trained by, kept, and used by every command that reads its log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model.trained_kinds import trained_kinds
from tests.cli.conftest import serving, tim4rec
from tests.service.conftest import ValkeyServer
from tests.training.logs import chain_log

RULES, OTHERS = "view:step,*:count", "buy:step,*:count"
QUICK = (
    "--d-model", 16, "--layers", 1, "--d-state", 4, "--epochs", 2, "--targets", 512, "--core", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "log.csv"
    rows = chain_log(users=40, length=20).frame.iter_rows()
    lines = [
        f"{user},{item},{ms},{'buy' if n % 5 == 0 else 'view'}"
        for n, (user, item, ms) in enumerate(rows)
    ]
    path.write_text("\n".join(["user_id,item_id,timestamp,kind", *lines]))
    return path


@pytest.fixture(scope="module")
def model(log: Path) -> Path:
    folder = log.with_name("model")
    result = tim4rec("train", log, "--kinds", RULES, "--out", folder, *QUICK)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_rules_are_a_part_of_the_model(model: Path, log: Path) -> None:
    assert json.loads((model / "config.json").read_text())["kinds"] == RULES
    card = (model / "README.md").read_text()
    assert f"rows are no steps by {RULES} and left out" in card


@pytest.mark.parametrize("command", ["evaluate", "judge", "live fit"])
def test_commands_take_the_rules_of_the_model(model: Path, log: Path, command: str) -> None:
    models = [model, model] if command == "judge" else [model]
    asked = [*command.split(), *models, log]
    taken = tim4rec(*asked)
    assert f"rows are no steps by {RULES} and left out" in taken.stderr, taken.output
    for told in ({"TIM4REC_KINDS": OTHERS}, {}):
        option = [] if told else ["--kinds", OTHERS]
        refused = tim4rec(*asked, *option, **told)
        assert refused.exit_code == 1
        (line,) = refused.stderr.splitlines()
        assert f"was trained by the kind rules {RULES}, and here they are {OTHERS}" in line
        assert "leave --kinds and TIM4REC_KINDS out" in line


def test_what_goes_on_from_a_model_has_its_rules(model: Path, log: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.csv"
    newest = max(int(line.split(",")[2]) for line in log.read_text().splitlines()[1:])
    rows = [line for line in log.read_text().splitlines()[1:] if line.endswith("view")][:60]
    new = [
        ",".join([*line.split(",")[:2], str(newest + 1000 * n), "view"])
        for n, line in enumerate(rows, 1)
    ]
    later.write_text("\n".join([log.read_text(), *new]))
    out = tmp_path / "next"
    for more in ([], ["--scoring-only"]):
        refused = tim4rec("train", later, "--from", model, "--kinds", OTHERS, "--out", out, *more)
        assert refused.exit_code == 1
        assert f"here they are {OTHERS}" in refused.stderr
    done = tim4rec("train", later, "--from", model, "--out", out, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert str(trained_kinds(out)) == RULES


def test_the_service_and_commands_in_bulk_go_by_the_rules_of_the_model(
    model: Path, log: Path, store: ValkeyServer
) -> None:
    def noted() -> bytes | None:
        with store.client() as client:
            found: bytes | None = client.hget("tim4rec:settings", "kinds")
            return found

    unsaid = tim4rec("import-log", log, "--redis", store.url, "--no-live")
    assert unsaid.exit_code == 0, unsaid.output
    assert "all kinds count as popular" in unsaid.stderr
    assert noted() is None, "nobody has said any"
    told = tim4rec("import-log", log, "--artefact", model, "--redis", store.url)
    assert told.exit_code == 0, told.output
    assert "all kinds" not in told.stderr
    assert noted() == RULES.encode()
    other = tim4rec("serve", model, "--redis", store.url, TIM4REC_KINDS=OTHERS)
    assert other.exit_code == 1
    assert "leave TIM4REC_KINDS out" in other.stderr
    for command in (["warm", model], ["live", "rebuild"], ["import-log", log]):
        done = tim4rec(*command, "--redis", store.url)
        assert done.exit_code == 0, done.output
        assert "all kinds" not in done.stderr
    with serving(model, store.url) as service:
        body = {"user_id": "u", "item_id": "i001", "kind": "buy"}
        assert httpx.post(f"{service.url}/interactions", json=body).status_code == 200
        assert httpx.get(f"{service.url}/readyz").json()["model"].partition("-kinds-")[2]
        text = httpx.get(f"{service.url}/metrics").text
        assert 'tim4rec_kinds_total{kind="buy"} 1' in text
    assert noted() == RULES.encode()

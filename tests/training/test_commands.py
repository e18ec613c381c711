"""`tim4rec train` and `tim4rec evaluate`, a running service included."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from cli import live
from cli.live import rank_through_service
from cli.main import app
from model import UNKNOWN_TIME, ModelConfig, State, TiM4Rec
from model.artefact import load_artefact, save_artefact
from tests.model.mixtures import some_mixture
from tests.training.logs import chain_log, make_log
from tim4rec_client import AsyncClient
from training.dataset import Protocol, build_dataset
from training.evaluation import Ranking, agreement, rank_targets
from training.interactions import read_log

QUICK = ["--epochs=2", "--d-model=32", "--d-state=16", "--targets=128", "--lr=5e-3", "--threads=1"]


def tim4rec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, an item table and an artefact trained on them."""
    folder = tmp_path_factory.mktemp("commands")
    frame = chain_log(users=40, length=20, items=30).frame
    frame.select("user_id", "item_id", timestamp="time_ms").write_csv(folder / "log.csv")
    titles = frame.select("item_id").unique().sort("item_id").head(25)
    titles.with_columns(
        title=pl.format("Title of {}", "item_id"), genres=pl.lit("Drama|Film-Noir")
    ).write_csv(folder / "items.csv")
    result = tim4rec(
        "train", folder / "log.csv", "--items", folder / "items.csv", "--out", folder / "model",
        "--no-refit", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def test_train_writes_a_whole_artefact(folder: Path) -> None:
    artefact = load_artefact(folder / "model")
    assert artefact.items.ids == [f"i{n:03}" for n in range(30)]
    assert artefact.items.titles is not None
    assert artefact.items.titles[3] == "Title of i003"
    assert artefact.items.titles[28] is None
    assert artefact.items.categories is not None
    assert artefact.items.categories[3] == ["Drama", "Film-Noir"]
    metrics = artefact.metrics
    assert metrics["protocol"]["core_users"] == metrics["protocol"]["core_items"] == 5
    assert "refit" not in metrics
    assert metrics["data"]["users"] == 40
    assert metrics["training"]["lr"] == 5e-3
    whole = [row for row in metrics["test"] if row["history"] == "whole"]
    assert {(row["seen"], row["request_time"]) for row in whole} == {
        (seen, asked) for seen in ("kept", "weighed", "filtered") for asked in (False, True)
    }
    card = (folder / "model" / "README.md").read_text()
    for row in whole:
        assert f"{row['NDCG@10']:.4f}" in card
    assert "Leave-one-out" in card
    assert not (folder / "model.training").exists(), "nothing is left of a finished run"


def test_train_says_what_it_does(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text((folder / "log.csv").read_text() + "u000,i001\n")
    refused = tim4rec("train", log, "--out", tmp_path / "model", *QUICK)
    assert refused.exit_code == 1
    assert "1 rows can't be read" in refused.output
    assert "2 fields instead of 3" in refused.output
    assert "Traceback" not in refused.output
    assert not (tmp_path / "model").exists()
    used = tim4rec(
        "train", log, "--items", folder / "items.csv", "--out", tmp_path / "model",
        "--skip-bad-rows", "--no-refit", "--verbose", *QUICK,
    )  # fmt: skip
    assert used.exit_code == 0, used.output
    assert "1 rows left out" in used.output
    assert "dropout=0.5" in used.output, "the recipe that was chosen is shown"
    assert "2 fields instead of 3" in used.output
    same = load_artefact(tmp_path / "model").model.state_dict()
    for name, value in load_artefact(folder / "model").model.state_dict().items():
        assert torch.equal(value, same[name]), name


def test_what_is_published_knows_every_row_and_says_whose_figures_it_has(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    done = tim4rec("train", folder / "log.csv", "--out", out, *QUICK)
    assert done.exit_code == 0, done.output
    assert "refit on every row" in done.output
    assert "dropout=" not in done.output, "what most do not ask for"
    assert "validation targets, without what each user has had" in done.output
    assert "the model alone is" in done.output
    assert "seen items filtered, request time unknown: HR@10 " in done.output
    assert "request time known" not in done.output
    assert not (tmp_path / "model.training").exists()
    artefact = load_artefact(out)
    log = read_log(folder / "log.csv")
    dataset = build_dataset(log, Protocol(2, 2, "forward"))
    metrics = artefact.metrics
    assert metrics["protocol"] == Protocol(2, 2, "forward").to_dict()
    assert metrics["data"] == {"name": "log", **dataset.describe()}
    assert metrics["refit"]["data"]["training_targets"] == len(log.frame) - 40
    assert artefact.items.popularity.sum() == len(log.frame) - 40
    assert "test" not in metrics
    whole = [row for row in metrics["validation"]["rows"] if row["history"] == "whole"]
    assert len(whole) == 6
    beside = metrics["comparison"]
    assert set(beside) == {"model", "recent popularity", "item-kNN"}
    found = next(row for row in whole if row["seen"] == "filtered" and not row["request_time"])
    assert beside["model"] == {name: found[name] for name in ("HR@10", "NDCG@10")}
    card = (out / "README.md").read_text()
    for part in (
        "2-core. Forward: validated on",
        "## Refit",
        "## Validation results",
        "Of the model before its refit.",
        "recent popularity  HR@10",
        *(f"{row['NDCG@10']:.4f}" for row in whole),
    ):
        assert part in card
    evaluated = tim4rec("evaluate", out, folder / "log.csv", "--users=9")
    assert evaluated.exit_code == 0, evaluated.output
    assert "was trained on every row of its log" in " ".join(evaluated.output.split())
    assert "9 users tested of 40" in evaluated.output
    assert "9 targets, without what each user has had" in evaluated.output
    assert "item-kNN " in evaluated.output
    assert "MRR@10/20/50" not in evaluated.output


def test_a_log_without_all_times_is_refitted_all_the_same(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "log.csv").read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:2], ""])
    (tmp_path / "log.csv").write_text("\n".join(lines))
    done = tim4rec("train", tmp_path / "log.csv", "--out", tmp_path / "model", *QUICK)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "no validation forward in time (a forward split needs every time; 1 are not" in said
    assert "test targets, without what each user has had" in done.output
    metrics = load_artefact(tmp_path / "model").metrics
    assert metrics["protocol"] == Protocol(2, 2).to_dict()
    assert metrics["refit"]["data"]["training_targets"] == len(lines) - 1 - 40
    refused = tim4rec(
        "train", tmp_path / "log.csv", "--out", tmp_path / "new", "--split=forward", *QUICK
    )
    assert refused.exit_code == 1
    assert "a forward split needs every time; 1 are not known" in refused.output


def test_users_and_items_may_have_a_core_each(folder: Path, tmp_path: Path) -> None:
    done = tim4rec(
        "train", folder / "log.csv", "--out", tmp_path / "model", "--core=3", "--core-items=1",
        "--split=temporal", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    metrics = load_artefact(tmp_path / "model").metrics
    assert metrics["protocol"] == Protocol(3, 1, "temporal").to_dict()
    assert metrics["test"]
    assert "refit" in metrics


def test_words_of_an_earlier_version_say_the_new_ones(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    result = tim4rec("train", missing, "--towers=2", "--validation-seen=masked", *QUICK)
    assert "--towers is now --ensemble; the old name works in this version only" in result.output
    assert "--validation-seen masked is now --validation-seen filtered;" in result.output
    assert f"{missing}: No such file" in result.output
    assert "masked" not in tim4rec("train", "--help").output


def test_train_refuses_a_foreign_folder_before_training(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    result = tim4rec("train", folder / "log.csv", "--out", tmp_path, *QUICK)
    assert result.exit_code == 1
    assert "not empty and not an artefact" in result.output
    assert "epoch" not in result.output.split("training:")[-1].split("\n", 1)[-1]


def test_kernels_that_cannot_be_used_are_one_line(folder: Path, tmp_path: Path) -> None:
    log, out = folder / "log.csv", tmp_path / "model"
    result = tim4rec("train", log, "--out", out, "--device=cpu", "--kernels=triton", *QUICK)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "--kernels triton: the kernels need a CUDA device, not cpu" in said
    assert not out.exists()


def test_evaluate_repeats_the_metrics_of_training(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = tim4rec("evaluate", folder / "model", folder / "log.csv", "--json", report)
    assert result.exit_code == 0, result.output
    assert "parallel and recurrent: " in result.output
    found = json.loads(report.read_text())
    parallel = [row for row in found["results"] if row["mode"] == "parallel"]
    trained = load_artefact(folder / "model").metrics["test"]
    assert len(parallel) == len(trained) == 18
    for row, expected in zip(parallel, trained, strict=True):
        assert row.pop("mode") == expected.pop("mode")
        assert row == pytest.approx(expected)
    assert len(found["agreement"]) == 2
    for entry in found["agreement"]:
        assert entry["same"] + entry["near"] == entry["users"] == 40


def test_evaluate_a_sample(folder: Path) -> None:
    result = tim4rec(
        "evaluate", folder / "model", folder / "log.csv", "--mode=parallel", "--users=7"
    )
    assert result.exit_code == 0
    assert "7 users tested of 40" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "log.csv"], "no such folder"),
        (["model", "nothing.csv"], "No such file"),
        (["model", "log.csv", "--device=tpu9"], "--device tpu9 can't be used"),
        (["model", "log.csv", "--core=900"], "no interactions are left in the 900-core"),
        (["model", "log.csv", "--mode=service", "--url=http://127.0.0.1:9"], "GET /readyz: "),
    ],
)
def test_evaluate_ends_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    result = tim4rec("evaluate", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_modes_that_disagree_are_listed_and_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TiM4Rec.step

    def wrong(self: TiM4Rec, items: Tensor, times: Tensor, state: State) -> State:
        return step(self, items % self.config.n_items + 1, times, state)

    monkeypatch.setattr(TiM4Rec, "step", wrong)
    result = tim4rec("evaluate", folder / "model", folder / "log.csv")
    assert result.exit_code == 1
    assert "\n  user u0" in result.output
    assert " more\n" in result.output


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    """The address of a service process with a store of its own, and with a mixture."""
    artefact = load_artefact(folder / "model")
    card = (folder / "model" / "README.md").read_text()
    save_artefact(
        folder / "model", artefact.model, artefact.items, artefact.metrics, card, some_mixture()
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", folder / "model", "--port", str(port),
         "--data-dir", folder / "state"],
        env=os.environ | {"TIM4REC_FSYNC": "everysec"},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None
            try:
                if httpx.get(f"{url}/readyz").is_success:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, "the service did not become ready"
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def test_the_service_agrees_with_both_offline_modes(
    folder: Path, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.secrets, "token_hex", lambda size: "0" * size)
    report = tmp_path / "report.json"
    result = tim4rec(
        "evaluate", folder / "model", folder / "log.csv", "--mode=parallel", "--mode=recurrent",
        "--mode=service", "--url", service, "--json", report,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    through = [entry for entry in found["agreement"] if entry["modes"] == ["parallel", "service"]]
    assert len(through) == 1
    assert through[0]["request_time"] is True
    assert through[0]["same"] + through[0]["near"] == through[0]["users"] == 40
    assert through[0]["different"] == []
    by_mode = {
        (row["mode"], row["seen"]): row
        for row in found["results"]
        if row["history"] == "whole" and row["request_time"]
    }
    for seen in ("weighed", "filtered"):
        assert by_mode["service", seen]["NDCG@10"] == pytest.approx(
            by_mode["parallel", seen]["NDCG@10"], abs=0.02
        )
    assert by_mode["service", "weighed"]["NDCG@10"] > 0
    left = httpx.get(f"{service}/users/evaluate-0000-u000")
    assert left.status_code == 404, "what was posted must be deleted"


class Unreliable(httpx.AsyncBaseTransport):
    """Refuses every third request as overloaded, and loses the answer to every seventh."""

    def __init__(self) -> None:
        self.real = httpx.AsyncHTTPTransport()
        self.requests = self.refused = self.lost = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if request.url.path != "/readyz":
            if self.requests % 3 == 0:
                self.refused += 1
                return httpx.Response(503, headers={"Retry-After": "0"})
            if self.requests % 7 == 0:
                self.lost += 1
                await (await self.real.handle_async_request(request)).aread()
                raise httpx.ReadError("lost", request=request)
        return await self.real.handle_async_request(request)

    async def aclose(self) -> None:
        await self.real.aclose()


@pytest.mark.slow
def test_refused_and_lost_requests_change_no_rank(folder: Path, service: str) -> None:
    artefact = load_artefact(folder / "model")
    dataset = build_dataset(read_log(folder / "log.csv"), Protocol(), artefact.items.ids)
    unreliable = Unreliable()

    async def run() -> Ranking:
        async with AsyncClient(service, transport=unreliable) as client:
            return await rank_through_service(client, dataset, dataset.test, at_target_time=True)

    offline = rank_targets(artefact.model, dataset.histories, dataset.test, at_target_time=(True,))[
        True
    ]
    result = agreement(offline, asyncio.run(run()))
    assert result.holds
    assert result.users == 40
    assert unreliable.refused > 10
    assert unreliable.lost > 5


def test_users_with_unknown_times_are_not_replayed_where_time_matters() -> None:
    rows = [("known", f"i{n}", 1000 * n) for n in range(6)]
    rows += [("history", f"i{n}", UNKNOWN_TIME if n == 1 else 1000 * n) for n in range(6)]
    rows += [("target", f"i{n}", UNKNOWN_TIME if n == 5 else 1000 * n) for n in range(6)]
    dataset = build_dataset(make_log(rows), Protocol(1, 1))

    def kept(**options: object) -> list[str]:
        config = ModelConfig(n_items=6, **options)  # type: ignore[arg-type]
        found = live.replayable(dataset.histories, dataset.test, config)
        return [dataset.user_ids[user] for user in found.users]

    assert kept() == ["known"]
    assert kept(request_time=False) == ["known", "target"]
    assert kept(time="none") == ["history", "known", "target"]


def test_a_service_of_another_model_is_told_apart(
    folder: Path, service: str, tmp_path: Path
) -> None:
    artefact = load_artefact(folder / "model")
    with torch.no_grad():
        artefact.model.item_embedding.weight[1] += 1
    save_artefact(tmp_path / "other", artefact.model, artefact.items, artefact.metrics, "")
    result = tim4rec(
        "evaluate", tmp_path / "other", folder / "log.csv", "--mode=service", "--url", service
    )
    assert result.exit_code == 1
    assert f"serves model {artefact.identity}, not " in result.output

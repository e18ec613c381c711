"""`tim4rec on-ray`: import-log and warm as tasks of two local Ray workers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.artefact import load_artefact
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.cli.test_records import contents, history, plain, post
from tests.training.logs import chain_log
from tests.training.test_parallel import torchrun
from training.interactions import read_log

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "tim4rec[ray]"'
)


def on_ray(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "on-ray", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True)


@needs_ray
def test_shards_are_imported_and_warmed_by_two_workers(
    valkey: ValkeyServer, write: Write, model_folder: Path
) -> None:
    rows = [row for n in range(30) for row in history(f"u{n:02}", 1 + n)]
    post(valkey.url, "u07", "i1", time_ms=BASE_MS)
    done = on_ray(
        "--shards", 2, "--", "import-log", write(rows), TIM4REC_REDIS_URL=valkey.url
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 2 shards failed: 1/2" in done.stderr
    assert "user 'u07': has 1 interactions that are not from this log" in done.stdout
    assert "shard 0/2: " in done.stdout
    for n in range(30):
        if n != 7:
            assert contents(valkey.url, f"u{n:02}") == plain(rows, f"u{n:02}")
    assert contents(valkey.url, "u07") == [("i1", BASE_MS)]
    done = on_ray("--shards", 2, "--", "warm", model_folder, "--redis", valkey.url)
    assert done.returncode == 0, done.stdout + done.stderr
    with valkey.client() as client:
        assert len(client.keys("tim4rec:s:*")) == 30


@needs_ray
@pytest.mark.slow
def test_two_workers_export_train_a_model_and_compute_its_states(
    valkey: ValkeyServer, write: Write, model_folder: Path, tmp_path: Path
) -> None:
    log = chain_log(users=30)
    store = {"TIM4REC_REDIS_URL": valkey.url}
    for step in (("import-log", write(list(log.frame.iter_rows()))), ("warm", model_folder)):
        assert tim4rec(*step, **store).exit_code == 0
    done = on_ray("--shards", 2, "--", "export-log", tmp_path / "export", **store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_log(tmp_path / "export").frame.equals(log.frame)
    middle = int(log.frame["time_ms"].quantile(0.5))  # type: ignore[arg-type]
    train = ("-m", "cli.main", "train", "export", "--device=cpu", "--epochs=1", "--threads=1")
    first = ("--out=first", "--d-model=32", "--d-state=8", f"--until={middle}")
    for options in (first, ("--from=first", "--out=next")):
        done = torchrun(*train, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = on_ray("--shards", 2, "--", "warm", tmp_path / "next", **store)
    assert done.returncode == 0, done.stdout + done.stderr
    identities = [load_artefact(folder).identity for folder in (model_folder, tmp_path / "next")]
    with valkey.client() as client:
        states = [len(client.keys(f"tim4rec:s:{identity}*")) for identity in identities]
    assert states == [30, 30]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "model"), "serve has no shards; give one of import-log, warm, export-log"),
        (("warm", "model"), "which store? Give the command's --redis, or TIM4REC_REDIS_URL"),
    ],
)
def test_what_it_cannot_run_is_said_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = tim4rec("on-ray", "--", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = tim4rec("on-ray", "--", "warm", "model", "--redis", "redis://x")
    assert result.exit_code == 1
    assert 'pip install "tim4rec[ray]"' in result.stderr

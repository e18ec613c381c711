"""`tim4rec on-ray`: import-log and warm as tasks of two local Ray workers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.cli.test_records import contents, history, plain, post
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
@pytest.mark.slow
def test_shards_are_imported_warmed_and_exported_by_two_workers(
    valkey: ValkeyServer, write: Write, model_folder: Path, tmp_path: Path
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
    done = on_ray(
        "--shards", 2, "--", "export-log", tmp_path / "export", TIM4REC_REDIS_URL=valkey.url
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    exported = read_log(tmp_path / "export").frame
    for user in ("u00", "u07", "u29"):
        own = exported.filter(user_id=user)
        assert list(own.select("item_id", "time_ms").iter_rows()) == contents(valkey.url, user)


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

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.processes import ROOT, alive
from tests.waited import until

STARTS = """
import subprocess, sys, time
from pathlib import Path
from threading import Thread
from tests.reaper import reap
from tests.service.conftest import ValkeyServer
server = ValkeyServer(Path(sys.argv[1]))
starter = Thread(target=server.start)
starter.start()
starter.join()
group = subprocess.Popen(
    ["sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
)
reap(group.pid)
child = group.stdout.readline().decode().strip()
print(server._process.pid, group.pid, child, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the reaper looks into /proc")
def test_nothing_outlives_a_killed_run(folder: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout:
        pids = [int(word) for word in run.stdout.readline().split()]
    time.sleep(0.2)
    assert all(map(alive, pids)), "they end with the thread that started them"
    run.kill()
    run.wait()
    until(lambda: not any(map(alive, pids)), "one lives on")

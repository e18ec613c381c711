from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.service.processes import ROOT, alive
from tests.waited import LONG_S

STARTS = """
import sys, time
from pathlib import Path
from threading import Thread
from tests.service.conftest import ValkeyServer
server = ValkeyServer(Path(sys.argv[1]))
starter = Thread(target=server.start)
starter.start()
starter.join()
print(server._process.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the reaper looks into /proc")
def test_no_server_outlives_a_killed_run(folder: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout:
        server = int(run.stdout.readline())
    time.sleep(0.2)
    assert alive(server), "it ends with the thread that started it"
    run.kill()
    run.wait()
    deadline = time.monotonic() + LONG_S
    while alive(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)

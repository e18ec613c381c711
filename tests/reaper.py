"""Kills what tests have started and a run that was killed itself could not end."""

from __future__ import annotations

import atexit
import subprocess
import sys
from functools import cache
from pathlib import Path

# Ends with this process, however that ends: then it kills what is still there, of a process that
# leads a group the whole group.
_REAPER = """
import os, signal, sys
from tests.reaper import began
for pid, when in [line.split() for line in sys.stdin]:
    try:
        pid = int(pid)
        if began(pid) == when:
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
    except OSError:
        pass
"""


def began(pid: int) -> str:
    """When a process began, in clock ticks: no later one with its number began then.

    Raises:
        OSError: there is none, or no /proc.
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def reap(pid: int) -> None:
    """It will not outlive this process. Nothing is done where there is no /proc."""
    if sys.platform == "linux":
        told = _reaper().stdin
        assert told is not None
        told.write(f"{pid} {began(pid)}\n".encode())


@cache
def _reaper() -> subprocess.Popen[bytes]:
    reaper = subprocess.Popen(
        [sys.executable, "-c", _REAPER],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    atexit.register(reaper.communicate)
    return reaper

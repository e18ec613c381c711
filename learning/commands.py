"""The heavy parts of a round, each a command of its own: one at a time, at a low priority."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

NICENESS = 10
ENDS_WITHIN_S = 30.0
_LAST_BYTES = 4096
_DIES_WITH_PARENT = """\
import ctypes, os, signal, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: of Linux, and kept by what is executed
if os.getppid() != int(sys.argv[1]):
    sys.exit("the learner has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class CommandFailed(Exception):
    """A command has ended otherwise than it may; the message is the last line of its errors."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    seconds: float


class Commands:
    """Args:
    prefix: what a command's words are added to.
    environment: all of the commands' environment.
    running: a file that says which process runs, so that the next learner ends what a killed
        one has left.
    """

    def __init__(
        self, prefix: Sequence[str], environment: Mapping[str, str], running: Path
    ) -> None:
        self._prefix, self._environment, self._running = prefix, environment, running

    async def run(self, words: Sequence[str], log: Path, accepted: Collection[int] = (0,)) -> Ended:
        """Runs a command to its end; it is ended if the caller is cancelled.

        Args:
            log: a file that what it says is added to.
            accepted: exit statuses that are no failure.

        Raises:
            CommandFailed
            OSError: it can't be started.
        """
        began = time.monotonic()
        with log.open("ab") as said:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _DIES_WITH_PARENT, str(os.getpid()), *self._prefix, *words,
                stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        try:
            self._note(process.pid)
            status = await process.wait()
        finally:
            await _end(process)
            self._running.unlink(missing_ok=True)
        if status not in accepted:
            raise CommandFailed(f"{words[0]}: {_last_line(log) or f'exit status {status}'}")
        return Ended(status, time.monotonic() - began)

    def end_left(self) -> None:
        """Ends the command that a killed learner has left running here."""
        try:
            pid, began = json.loads(self._running.read_text("utf-8"))
            if psutil.Process(pid).create_time() == began:
                logger.warning("the command of a learner that was killed is ended: process %d", pid)
                os.killpg(pid, signal.SIGKILL)
        except (OSError, ValueError, psutil.Error):
            pass
        self._running.unlink(missing_ok=True)

    def _note(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):  # it has ended already
            process = psutil.Process(pid)
            process.nice(NICENESS)
            self._running.write_text(json.dumps([pid, process.create_time()]), encoding="utf-8")


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), ENDS_WITHIN_S)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else ""

"""`tim4rec` as processes of their own that need not import it first.

A server process of this test run has imported the application once and forks for each: importing
torch is most of a start. So do the workers of a service. What a test says of starting itself runs
`python -m cli.main`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkContext, ForkProcess, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
STOPPING = (signal.SIGTERM, signal.SIGQUIT)
_forks: ForkServerContext = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """What tests ask of a `subprocess.Popen`, of a forked process."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
        prepare: Callable[[], object] = int,
    ) -> None:
        """Runs `tim4rec` with these arguments in a process group of its own.

        Args:
            environment: all of it.
            output: a file that standard output and error are added to.
            prepare: is called there first.
        """
        output.touch()
        given = (list(arguments), dict(environment), output, prepare)
        self._process: BaseProcess = _forks.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("tim4rec", timeout)
        return code

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(
    arguments: list[str],
    environment: dict[str, str],
    output: Path,
    prepare: Callable[[], object],
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["tim4rec", *arguments]
    from cli.main import app
    from service.supervisor import Supervisor

    Supervisor.context = _Workers()
    prepare()
    app()


class _Worker(ForkProcess):
    """Has, like one that is spawned, no handlers of the signals that stop it."""

    def start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def run(self) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        super().run()


class _Workers(ForkContext):
    Process = _Worker

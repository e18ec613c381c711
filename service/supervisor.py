"""The processes of a service: one, or workers and a supervisor that keeps them running.

uvicorn's own supervisor can't take its place: its workers run `uvicorn.Server` as it is, without a
drain; it repeats no second signal and waits for workers without end; and once a worker can't start
again, as while the store is away, it ends the service.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from types import FrameType

from service.lifecycle import STARTUP_FAILURE
from service.listeners import bound
from service.observe import logs
from service.server import STOPPED_AT_ONCE, TWICE_S, run_server
from service.settings import Settings

logger = logging.getLogger(__name__)

KILL_AFTER_S = 5.0
RESTART_EVERY_S = 1.0


def serve(settings: Settings) -> int:
    """Runs the service until it is told to stop; its exit status.

    Raises:
        AddressError: the address or the port can't be listened on.
    """
    ports = [port for port in (settings.port, settings.operations_port) if port is not None]
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(listener)
            for port in ports
            for listener in bound(settings.host, port)
        ]
        if settings.workers == 1:
            return run_server(settings, listeners)
        return Supervisor(settings, listeners).run()


class Supervisor:
    """Keeps `workers` processes on the same ports, and passes on the signals to stop."""

    context = multiprocessing.get_context("spawn")

    def __init__(self, settings: Settings, listeners: list[socket.socket]) -> None:
        self.settings, self.listeners = settings, listeners
        self.serving = self.context.Event()
        self.workers: list[SpawnProcess] = []
        self._signalled: float | None = None
        self._at_once = False

    def run(self) -> int:
        """Until told to stop; the exit status."""
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            for _ in range(self.settings.workers):
                self._start()
            failed = self._watch()
            for listener in self.listeners:
                listener.close()
            lost = self._join()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if failed:
            return STARTUP_FAILURE
        return STOPPED_AT_ONCE if lost or self._at_once else 0

    def _start(self) -> None:
        worker = self.context.Process(
            target=_work,
            args=(self.settings, self.listeners, os.getpid(), self.serving),
            name="tim4rec worker",
        )
        # The terminal's signals are for the supervisor, also while a worker starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.workers.append(worker)
        if self._stopping():  # while it was being started
            _send(worker, signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Passed on from here, and not by the loop: it may be late.
        now = time.monotonic()
        again = self._signalled is not None and now > self._signalled + TWICE_S
        if again or number == signal.SIGQUIT:
            self._at_once = True
        self._signalled = self._signalled or now
        for worker in self.workers:
            _send(worker, signal.SIGQUIT if self._at_once else signal.SIGTERM)

    def _stopping(self) -> bool:
        return self._signalled is not None

    def _watch(self) -> bool:
        """Starts workers anew that die, until told to stop; whether none could be started."""
        restart_at = 0.0
        while not self._stopping():
            wait([worker.sentinel for worker in self.workers], timeout=0.1)
            for worker in [worker for worker in self.workers if not worker.is_alive()]:
                if self._stopping():
                    break
                self.workers.remove(worker)
                code = worker.exitcode
                worker.close()
                if code == STARTUP_FAILURE and not self.serving.is_set():
                    self._on_signal(signal.SIGTERM, None)
                    return True
                logger.error("a worker ended (%s): starting another", _cause(code))
            # One that can't start now, without the store for instance, may later.
            lacking = len(self.workers) < self.settings.workers and not self._stopping()
            if lacking and time.monotonic() >= restart_at:
                restart_at = time.monotonic() + RESTART_EVERY_S
                self._start()
        return False

    def _join(self) -> bool:
        """Waits for all workers to end; whether any did not end by itself."""
        lost = False
        until = time.monotonic() + self.settings.drain_s + self.settings.shutdown_s + KILL_AFTER_S
        for worker in self.workers:
            worker.join(max(0.0, until - time.monotonic()))
            if worker.is_alive():
                logger.error("worker %d does not end: killed", worker.pid)
                worker.kill()
                worker.join()
            if self._at_once or worker.exitcode in (0, -signal.SIGTERM):  # it was just starting
                continue
            logger.error("a worker ended: %s", _cause(worker.exitcode))
            lost = True
        return lost


def _work(
    settings: Settings, listeners: list[socket.socket], supervisor: int, serving: Event
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    logs.configure(settings.log_level, settings.log_format)
    raise SystemExit(run_server(settings, listeners, supervisor, serving))


def _send(worker: SpawnProcess, number: int) -> None:
    with suppress(ProcessLookupError):
        if worker.pid is not None and worker.exitcode is None:
            os.kill(worker.pid, number)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit status {code}"

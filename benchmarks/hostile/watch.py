"""What an attack does to others, seen from a process of its own: how long GET /livez takes, asked
every 10 ms over a connection that is kept, and how much memory the service has.

    python -m benchmarks.hostile.watch PORT PID

A line each: `livez BEGAN SECONDS WAITED` and `memory AT BYTES`. WAITED is what the service's first
thread, in which its event loop is, and this process spent waiting for a processor meanwhile
(Linux): on a busy machine that is no fault of the service.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.01
GIVEN_UP_S = 60.0


@dataclass(frozen=True)
class Seen:
    """Of a span of time. `longest_s`: as /livez's caller sees it; `stall_s`: without what was
    waited for a processor. Memory in bytes."""

    longest_s: float
    stall_s: float
    before: int
    peak: int
    after: int


class Watch:
    """Watches a service until it is left; `too_much` is called, once, when the process has more
    than `most_bytes`."""

    def __init__(
        self, port: int, pid: int, most_bytes: int, too_much: Callable[[], None] = lambda: None
    ) -> None:
        self._most, self._too_much = most_bytes, too_much
        self._livez: list[tuple[float, float, float]] = []
        self._memory: list[tuple[float, int]] = []
        command = [sys.executable, "-m", "benchmarks.hostile.watch", str(port), str(pid)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, began, *numbers = line.split()
            if kind == "livez":
                self._livez.append((float(began), float(numbers[0]), float(numbers[1])))
                continue
            self._memory.append((float(began), int(numbers[0])))
            if int(numbers[0]) > self._most:
                self._too_much()
                self._too_much = lambda: None

    def now(self) -> float:
        """The beginning of a span."""
        began = time.monotonic()
        self._until(lambda: bool(self._memory) and self._memory[-1][0] > began)
        return began

    def since(self, began: float) -> Seen:
        """What was seen from then to now, the question that is open now included."""
        now = time.monotonic()
        answered = self._until(lambda: bool(self._livez) and self._livez[-1][0] > now)
        longest = stall = 0.0 if answered else time.monotonic() - now
        for asked, took, waited in reversed(self._livez):
            if asked + took < began:
                break
            if asked <= now:
                longest, stall = max(longest, took), max(stall, took - waited)
        memory = list(self._memory)
        first = max(0, bisect_left(memory, (began, 0)) - 1)
        return Seen(
            longest, stall, memory[first][1], max(size for _, size in memory[first:]), memory[-1][1]
        )

    def _until(self, holds: Callable[[], bool]) -> bool:
        until = time.monotonic() + GIVEN_UP_S
        while not holds():
            if time.monotonic() > until or self._process.poll() is not None:
                return False
            time.sleep(EVERY_S)
        return True


def _waited(pid: str) -> float:
    """Seconds that the first thread of a process has waited for a processor."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _ask(port: int, pid: str) -> None:
    request = f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connection: socket.socket | None = None
    while True:
        waited = _waited(pid) + _waited("self")
        began = time.monotonic()
        try:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port), timeout=GIVEN_UP_S)
            connection.sendall(request)
            if not connection.recv(4096):
                connection = None
                continue
        except OSError:
            connection = None
            if not Path(f"/proc/{pid}").exists():
                return
        took = time.monotonic() - began
        waited = _waited(pid) + _waited("self") - waited
        _say("livez", began, took, min(took, max(0.0, waited)))
        time.sleep(EVERY_S)


def _weigh(pid: str) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        try:
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            return
        _say("memory", time.monotonic(), resident)
        time.sleep(EVERY_S)


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # at once: two threads do it


def _main(port: str, pid: str) -> None:
    threading.Thread(target=_weigh, args=(pid,), daemon=True).start()
    # Ends with whoever asked for it.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    _ask(int(port), pid)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""The service, with a note in a file of every time its event loop did not get round.

    STALLS_FILE=notes python -m benchmarks.stalls_app serve artefacts/amazon-beauty --redis URL

A note is a line of JSON: `at` (time.perf_counter) and `s` of wall time, and by its `kind`: `loop`,
a turn that took long, with the `cpu` time of its thread; `stack`, what it was doing; `gc`, a pass
of the garbage collector and its `generation`; `store`, a slow round trip, its `operation` and the
number of its commands.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

BEAT_S = 0.005
LATE_S = 0.03
SLOW_ROUND_TRIP_S = 0.02
FRAMES = 6


class Watcher:
    """Beats in the event loop, and looks from a thread at what keeps the beat away."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a")
        self._lock = threading.RLock()  # collecting garbage may come in between
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._beat, self._cpu = time.perf_counter(), time.thread_time()
        self._gc = 0.0

    def start(self) -> None:
        self._again()
        gc.callbacks.append(self._collected)
        threading.Thread(target=self._watch, daemon=True).start()

    def note(self, kind: str, at: float, seconds: float, **more: object) -> None:
        with self._lock:
            self._file.write(json.dumps({"kind": kind, "at": at, "s": seconds} | more) + "\n")
            self._file.flush()

    def _again(self) -> None:
        now, cpu = time.perf_counter(), time.thread_time()
        if now - self._beat > BEAT_S + LATE_S:
            self.note("loop", self._beat, now - self._beat, cpu=cpu - self._cpu)
        self._beat, self._cpu = now, cpu
        self._loop.call_later(BEAT_S, self._again)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._gc = now
        else:
            self.note("gc", self._gc, now - self._gc, generation=info["generation"])

    def _watch(self) -> None:
        while True:
            time.sleep(BEAT_S)
            late = time.perf_counter() - self._beat
            if late > BEAT_S + LATE_S:
                frame = sys._current_frames()[self._thread]
                stack = [
                    f"{Path(at.filename).name}:{at.lineno} {at.name}"
                    for at in traceback.extract_stack(frame)[-FRAMES:]
                ]
                self.note("stack", self._beat, late, stack=stack)


def watch(file: Path) -> None:
    """Every service that this process starts from now on."""
    from service.server import Server
    from service.store.client import Store

    startup, round_trip = Server.startup, Store._attempt

    async def started(self: Server, *arguments: Any, **named: Any) -> None:
        await startup(self, *arguments, **named)
        watcher = Watcher(file)

        async def timed(self: Store, *arguments: Any) -> list[Any]:
            commands, _, operation, _ = arguments
            began = time.perf_counter()
            try:
                return await round_trip(self, *arguments)
            finally:
                took = time.perf_counter() - began
                if took > SLOW_ROUND_TRIP_S:
                    size = len(commands)
                    watcher.note("store", began, took, operation=operation, commands=size)

        Store._attempt = timed  # type: ignore[method-assign, assignment]
        watcher.start()

    Server.startup = started  # type: ignore[method-assign]


if __name__ == "__main__":
    watch(Path(os.environ["STALLS_FILE"]))
    from cli.main import app

    app()

"""Metric values that the workers of one service share through files.

Each worker writes its values to files of its own in $PROMETHEUS_MULTIPROC_DIR, and whichever is
scraped adds all of them up. The files belong to a numbered place and not to a process: a worker
that follows on a dead one takes over its place and counts on from there. Counters therefore never
fall, and there are never more files than there were workers at once. A place is a lock that the
kernel releases however its process ends; the gauges of a place without a process are left out.

A value changes in memory and is written `WRITE_EVERY_S` later at most, so that counting is cheap
in the thread that answers requests, the only one that may change values. A `kill -9` loses what
was counted since.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import Histogram, values
from prometheus_client.multiprocess import mark_process_dead

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
WRITE_EVERY_S = 0.1


class Value:
    """One number of a metric, with the interface of prometheus_client's own values."""

    _multiprocess = False

    def __init__(self, *described: Any, **options: Any) -> None:
        self._described, self._options = described, options
        self._number, self._timestamp = 0.0, 0.0
        self._written = True
        self._file: Any = None
        _all.append(self)
        if _in_place is not None:
            self._open(_in_place)

    def inc(self, amount: float) -> None:
        self._number += amount
        if self._written:
            self._written = False
            _changed.append(self)

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._number, self._timestamp = value, timestamp or 0.0
        if self._written:
            self._written = False
            _changed.append(self)

    def get(self) -> float:
        return self._number

    def get_exemplar(self) -> None:
        """Exemplars are not kept."""

    def _open(self, kind: Any) -> None:
        self._file = kind(*self._described, **self._options)
        if self._described[0] != "gauge":
            self._number += self._file.get()  # of the workers that had this place before

    def _close(self) -> None:
        self._file = None
        if self._described[0] != "gauge":
            self._number = 0.0  # it goes on from the file

    def _write(self) -> None:
        self._written = True
        if self._file is not None:
            self._file.set(self._number, self._timestamp)


_all: list[Value] = []
_changed: list[Value] = []
_in_place: Any = None  # the class of the values in this process's files, while it has a place

values.ValueClass = Value  # what every metric made from here on is made of


def observe_in_no_time(histogram: Histogram, number: int) -> None:
    """Observes 0 so many times; the library's own way takes one at a time."""
    histogram._buckets[0].inc(number)


def write() -> None:
    """Writes what has changed, in the thread that changes it."""
    while _changed:
        _changed.pop()._write()


@asynccontextmanager
async def shared() -> AsyncIterator[None]:
    """Takes part in the sharing, where the environment names a folder for it.

    Raises:
        OSError: the folder can't be made or written to.
    """
    global _in_place
    name = os.environ.get(MULTIPROC_DIR)
    if not name:
        yield
        return
    folder = Path(name)
    place, lock = _take(folder)
    try:
        mark_process_dead(place, folder)  # type: ignore[no-untyped-call]
        _in_place = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
        for value in _all:
            value._open(_in_place)
            value._write()
        writing = asyncio.create_task(_keep_writing())
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            write()
            mark_process_dead(place, folder)  # type: ignore[no-untyped-call]
    finally:
        for value in _all:
            value._close()
        if _in_place is not None:
            _in_place.close_all_files()
        _in_place = None
        os.close(lock)


async def _keep_writing() -> None:
    while True:
        await asyncio.sleep(WRITE_EVERY_S)
        write()


def forget_the_dead(folder: Path) -> None:
    """Removes the gauges of places without a process."""
    for file in folder.glob("*.place"):
        lock = _lock(file)
        if lock is not None:
            # Nobody can take the place meanwhile.
            mark_process_dead(file.stem, folder)  # type: ignore[no-untyped-call]
            os.close(lock)


def clear(folder: Path) -> None:
    """Removes what earlier runs have left in the folder; files of living processes stay.

    Raises:
        OSError: the folder can't be made or written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(folder / "0.place", os.O_RDWR | os.O_CREAT, 0o600))
    kinds = ("counter_*.db", "histogram_*.db", "gauge_*.db")
    for file in itertools.chain.from_iterable(map(folder.glob, kinds)):
        lock = _lock(folder / f"{file.stem.rpartition('_')[2]}.place")
        if lock is not None:
            file.unlink(missing_ok=True)
            os.close(lock)


def _take(folder: Path) -> tuple[str, int]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in itertools.count():
        lock = _lock(folder / f"{number}.place")
        if lock is not None:
            return str(number), lock
    raise AssertionError


def _lock(file: Path) -> int | None:
    """A descriptor that holds the lock until it is closed; None: another one does."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock

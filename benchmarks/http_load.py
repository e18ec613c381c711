"""A load generator: requests kept in flight, or sent at a constant rate whatever the answers do.

At a constant rate a latency counts from the moment a request should have been sent. One that had
to wait, for a connection or for the generator, is as late as it is for its caller.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import uvloop

MOST_CONNECTIONS = 2000
ANSWERS_WITHIN_S = 30.0
BEHIND_S = 0.01

_length = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class Outcome:
    """What came of a load.

    seconds: from the first request to the last answer. latencies: seconds, of answers with status
    200, in the order they came. ended: when those came, time.perf_counter. failures: of other
    answers, their status; None: no answer. generator_s: CPU time that the generator took. behind:
    when at a constant rate the generator itself was late, time.perf_counter, and how late, s.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: Counter[int | None] = field(default_factory=Counter)
    refusals: list[float] = field(default_factory=list)
    generator_s: float = 0.0
    ended: list[float] = field(default_factory=list)
    behind: list[tuple[float, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds

    def ms(self, percentile: float) -> float:
        """A percentile of the latencies; an infinite one where more requests failed."""
        latencies = self.latencies + [float("inf")] * self.failures.total()
        if not latencies:
            return float("inf")
        return 1000 * float(np.percentile(latencies, percentile, method="higher"))

    def summary(self) -> dict[str, float]:
        """What a table shows and a JSON file keeps."""
        return {
            "rate": self.rate,
            "p50_ms": self.ms(50),
            "p90_ms": self.ms(90),
            "p99_ms": self.ms(99),
            "max_ms": self.ms(100),
            "failed": self.failures.total(),
            "generator_share": self.generator_s / self.seconds,
        }


def closed_loop(port: int, requests: Iterator[bytes], in_flight: int, seconds: float) -> Outcome:
    """Each of `in_flight` connections sends a request as soon as it has the last one's answer,
    for so long, or until there are no more."""
    return uvloop.run(_closed_loop(port, requests, in_flight, seconds))


def open_loop(port: int, requests: Iterator[bytes], rate: float, seconds: float) -> Outcome:
    """`rate` requests a second, evenly spaced, on as many connections as it takes."""
    # uvloop's timers are too coarse, but so are asyncio's: the kernel's wake it.
    return uvloop.run(_open_loop(port, requests, rate, seconds))


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. `done` gets it, the status and the time it took."""

    def __init__(self, done: Callable[[_Connection, int | None, float], None]) -> None:
        self._done = done
        self._buffer = b""
        self._since: float | None = None
        self._whole: int | None = None
        self._status = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class

    def send(self, request: bytes, since: float) -> None:
        self._since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._whole is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            found = _length.search(self._buffer, 0, end)
            assert found, "an answer without a length"
            self._whole, self._status = end + 4 + int(found[1]), int(self._buffer[9:12])
        if len(self._buffer) >= self._whole and self._since is not None:
            since, self._since = self._since, None
            self._buffer, self._whole = b"", None
            self._done(self, self._status, time.perf_counter() - since)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._since is not None:
            since, self._since = self._since, None
            self._done(self, None, time.perf_counter() - since)


def _count(outcome: Outcome, status: int | None, took: float) -> None:
    if status == 200:
        outcome.latencies.append(took)
        outcome.ended.append(time.perf_counter())
    else:
        outcome.failures[status] += 1
        if status is not None:
            outcome.refusals.append(took)


async def _closed_loop(
    port: int, requests: Iterator[bytes], in_flight: int, seconds: float
) -> Outcome:
    outcome, ended = Outcome(), asyncio.Event()
    running = in_flight

    def answered(connection: _Connection, status: int | None, took: float) -> None:
        nonlocal running
        _count(outcome, status, took)
        now = time.perf_counter()
        if now < until and status is not None and (request := next(requests, None)) is not None:
            connection.send(request, now)
            return
        running -= 1
        connection.transport.close()
        if not running:
            ended.set()

    connections = [await _connect(port, answered) for _ in range(in_flight)]
    cpu, started = time.process_time(), time.perf_counter()
    until = started + seconds
    for connection in connections:
        connection.send(next(requests), time.perf_counter())
    async with asyncio.timeout(seconds + ANSWERS_WITHIN_S):
        await ended.wait()
    outcome.seconds = time.perf_counter() - started
    outcome.generator_s = time.process_time() - cpu
    return outcome


async def _open_loop(port: int, requests: Iterator[bytes], rate: float, seconds: float) -> Outcome:
    outcome, ended = Outcome(), asyncio.Event()
    total, sent, lost = round(rate * seconds), 0, 0
    waiting: deque[float] = deque()  # when each should have been sent

    def answered(connection: _Connection, status: int | None, took: float) -> None:
        nonlocal lost
        _count(outcome, status, took)
        if len(outcome.latencies) + outcome.failures.total() == total:
            ended.set()
        if status is None:
            lost += 1
        elif waiting:
            connection.send(next(requests), waiting.popleft())
        else:
            free.append(connection)

    free = [await _connect(port, answered) for _ in range(64)]
    everyone = list(free)
    opening: set[asyncio.Task[None]] = set()

    async def another() -> None:
        connection = await _connect(port, answered)
        everyone.append(connection)
        if waiting:
            connection.send(next(requests), waiting.popleft())
        else:
            free.append(connection)

    def due() -> None:
        nonlocal sent, lost
        os.read(clock, 8)
        now = time.perf_counter()
        late = now - started - sent / rate
        if late > BEHIND_S:
            outcome.behind.append((now, late))
        while sent < total and (at := started + sent / rate) <= now:
            sent += 1
            while free and free[-1].transport.is_closing():  # idle ones are closed by the server
                free.pop()
                lost += 1
            if free:
                free.pop().send(next(requests), at)
                continue
            waiting.append(at)
            if len(everyone) - lost + len(opening) < MOST_CONNECTIONS:
                task = asyncio.create_task(another())
                opening.add(task)
                task.add_done_callback(opening.discard)

    loop = asyncio.get_running_loop()
    # Of its first tick, and before the clock: else each tick could be just before its request is
    # due, which then waits for the next one.
    cpu, started = time.process_time(), time.perf_counter() + 1 / rate
    clock = _every(1 / rate)
    loop.add_reader(clock, due)
    try:
        async with asyncio.timeout(seconds + ANSWERS_WITHIN_S):
            await ended.wait()
    except TimeoutError:
        missing = total - len(outcome.latencies) - outcome.failures.total()
        outcome.failures[None] += missing
    finally:
        loop.remove_reader(clock)
        os.close(clock)
    outcome.seconds = time.perf_counter() - started
    outcome.generator_s = time.process_time() - cpu
    for connection in everyone:
        connection.transport.close()
    return outcome


async def _connect(
    port: int, done: Callable[[_Connection, int | None, float], None]
) -> _Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: _Connection(done), "127.0.0.1", port)
    return connection


def _every(seconds: float) -> int:
    """A descriptor that is readable every so many seconds; event loops' own timers are a
    millisecond late. (os.timerfd_create is only in Python 3.13.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    nonblocking, monotonic = os.O_NONBLOCK, time.CLOCK_MONOTONIC
    timer: int = libc.timerfd_create(monotonic, nonblocking)
    nanoseconds = max(1, round(seconds * 1e9))
    period = divmod(nanoseconds, 10**9)
    if timer < 0 or libc.timerfd_settime(timer, 0, (ctypes.c_long * 4)(*period, *period), None):
        raise OSError(ctypes.get_errno(), "no timer: this benchmark needs Linux")
    return timer


# -- what is asked -----------------------------------------------------------------------


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def reads(users: int, seed: int = 0) -> Iterator[bytes]:
    """GET /recommend?k=10 of users drawn evenly."""
    draw = random.Random(seed)
    while True:
        yield get(f"/recommend?user_id=user-{draw.randrange(users)}&k=10")


def everyone(users: int) -> Iterator[bytes]:
    """GET /recommend of each user once."""
    return (get(f"/recommend?user_id=user-{number}&k=10") for number in range(users))


def writes(users: int, items: Sequence[str], seed: int = 0) -> Iterator[bytes]:
    """POST /interactions, each with an event_id of its own."""
    draw = random.Random(seed)
    mark = f"{time.time_ns():x}"
    for number in itertools.count():
        body = {
            "user_id": f"user-{draw.randrange(users)}",
            "item_id": draw.choice(items),
            "event_id": f"{mark}-{number}",
        }
        yield post("/interactions", body)


def mixed(users: int, items: Sequence[str], seed: int = 0) -> Iterator[bytes]:
    """Four GETs to one POST, in any order."""
    draw = random.Random(seed)
    get_, post_ = reads(users, seed), writes(users, items, seed + 1)
    while True:
        yield next(get_ if draw.random() < 0.8 else post_)


def batches(users: int, items: Sequence[str], size: int = 1000, seed: int = 0) -> Iterator[bytes]:
    """POST /interactions/batch."""
    draw = random.Random(seed)
    while True:
        body = [
            {"user_id": f"user-{draw.randrange(users)}", "item_id": draw.choice(items)}
            for _ in range(size)
        ]
        yield post("/interactions/batch", {"interactions": body})

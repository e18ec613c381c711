"""An open-loop load that remembers what was acknowledged, and what must then be true."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import uvloop

from model.artefact import Artefact
from tests.faults.http import Client
from tests.service.processes import BASE_MS, check_answer, history, offline_scores, pairs

AT_MS = BASE_MS + 10**12
SETTLED_WITHIN_S = 60


@dataclass(frozen=True)
class Answer:
    """One request's end. Seconds of `time.monotonic`; `status` None: the connection broke."""

    began: float
    took: float
    method: str
    status: int | None
    stale: bool = False

    @property
    def ended(self) -> float:
        return self.began + self.took


class Load:
    """Sends `rate` requests a second whatever becomes of them, from a thread of its own.

    A POST that was not acknowledged is sent again with the same `event_id`, as callers should,
    until it is. As a context manager: from its beginning until every event is acknowledged.
    """

    def __init__(
        self,
        port: int,
        items: list[str],
        *,
        users: int = 24,
        rate: float = 60,
        reads: float = 0.3,
        name: str = "user",
    ) -> None:
        self.port, self.items, self.rate, self.reads = port, items, rate, reads
        self.users = [f"{name} {n}" for n in range(users)]
        self.sent: dict[str, dict[str, dict[str, Any]]] = {user: {} for user in self.users}
        self.acknowledged: dict[str, dict[str, int]] = {user: {} for user in self.users}
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        self.most_in_flight = 0
        self.lag_s = 0.0
        """How late the load itself was at most: the machine was busy."""
        self._draw = random.Random(name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def n_acknowledged(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def until(self, more: int, within_s: float = 60) -> None:
        """Returns when so many more events are acknowledged."""
        enough, deadline = self.n_acknowledged + more, time.monotonic() + within_s
        while self.n_acknowledged < enough:
            assert time.monotonic() < deadline, f"no progress; {self.wrong[:3]}"
            assert self._thread.is_alive()
            time.sleep(0.01)

    # -- what it saw ---------------------------------------------------------------------

    def between(self, start: float, end: float = float("inf")) -> list[Answer]:
        """The answers to what was sent then."""
        return [answer for answer in self.answers if start <= answer.began < end]

    def outage_s(self, since: float) -> float:
        """The longest time without an acknowledgement."""
        ends = sorted(a.ended for a in self.answers if a.method == "POST" and a.status == 200)
        ends = [end for end in ends if end >= since]
        return max(b - a for a, b in zip([since, *ends[:-1]], ends, strict=True))

    def recovered_s(self, over: float) -> float:
        """From the end of a fault to the end of the first POST begun after it that succeeded."""
        return min(
            a.ended - over
            for a in self.answers
            if a.method == "POST" and a.status == 200 and a.began >= over
        )

    def statuses(self, start: float, end: float = float("inf")) -> dict[str, int]:
        counted = Counter(
            f"{a.method} {a.status or 'broken'}{' stale' if a.stale else ''}"
            for a in self.between(start, end)
        )
        return dict(sorted(counted.items()))

    # -- what must be true ---------------------------------------------------------------

    def lost(self, client: httpx.Client) -> int:
        """How many acknowledged events the log does not have. Fails if it has one twice, one that
        was never sent, another item, or a hole."""
        lost = 0
        for user in self.users:
            found = history(client, user)
            names = [event["event_id"] for event in found]
            assert len(set(names)) == len(names), f"{user}: an event is there twice"
            assert [event["version"] for event in found] == list(range(1, len(found) + 1))
            for event in found:
                sent = self.sent[user].get(event["event_id"])
                assert sent is not None, f"{user}: {event} was never sent"
                assert event["item_id"] == sent["item_id"]
            lost += len(self.acknowledged[user].keys() - set(names))
        return lost

    def check(self, client: httpx.Client, artefact: Artefact) -> None:
        """Nothing acknowledged is lost or at another place, nothing is there twice, and answers
        are those of one pass over what the log has."""
        assert self.wrong == []
        assert self.lost(client) == 0
        for user in self.users:
            events = history(client, user)
            places = {event["event_id"]: event["version"] for event in events}
            for name, version in self.acknowledged[user].items():
                assert places[name] == version, f"{user}: {name} was acknowledged as {version}"
            self.check_answers(client, artefact, user, events)

    def check_answers(
        self, client: httpx.Client, artefact: Artefact, user: str, events: list[dict[str, Any]]
    ) -> None:
        query = {"user_id": user, "k": 40, "at": AT_MS, "exclude_seen": False}
        scores = offline_scores(artefact, pairs(events), AT_MS) if events else {}
        for _ in range(4):  # each over a connection of its own, so by any worker
            headers = {"Connection": "close"}
            answer = client.get("/recommend", params=query, headers=headers).json()
            assert answer["version"] == len(events)
            assert not answer["stale"]
            if events:
                check_answer(answer, scores, 40)

    def send_again(self, client: httpx.Client) -> int:
        """Everything once more, by the same event ids; how many were not there any more."""
        added = 0
        for user in self.users:
            events = list(self.sent[user].values())
            for start in range(0, len(events), 200):
                body = {"interactions": events[start : start + 200]}
                results = client.post("/interactions/batch", json=body).json()["results"]
                for event, result in zip(events[start : start + 200], results, strict=True):
                    assert result["status"] in ("applied", "late", "duplicate"), result
                    added += result["status"] != "duplicate"
                    self.acknowledged[user][event["event_id"]] = result["version"]
        return added

    # -- the thread ----------------------------------------------------------------------

    async def _run(self) -> None:
        client, running = Client(self.port), set[asyncio.Task[None]]()
        due = time.monotonic()
        while not self._stop.is_set():
            self.lag_s = max(self.lag_s, time.monotonic() - due)
            while due <= time.monotonic():
                due += 1 / self.rate
                read = self._draw.random() < self.reads
                task = asyncio.create_task(self._get(client) if read else self._post(client))
                running.add(task)
                task.add_done_callback(running.discard)
            self.most_in_flight = max(self.most_in_flight, len(running))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with asyncio.timeout(SETTLED_WITHIN_S):
            await asyncio.gather(*running)
        client.close()

    async def _get(self, client: Client) -> None:
        user = self._draw.choice(self.users)
        await self._ask(client, "GET", f"/recommend?user_id={quote(user)}&k=5")

    async def _post(self, client: Client) -> None:
        user = self._draw.choice(self.users)
        number = len(self.sent[user])
        name = f"event {number}"
        event = {"user_id": user, "item_id": self._item(user, number), "event_id": name}
        if self._draw.random() < 0.5:
            event["timestamp"] = BASE_MS + number * 60_000
        self.sent[user][name] = event
        pause = 0.1
        while True:
            body = await self._ask(client, "POST", "/interactions", event)
            if body is not None:
                if body["status"] not in ("applied", "late", "duplicate"):
                    self.wrong.append(f"{body}")
                self.acknowledged[user][name] = body["version"]
                return
            await asyncio.sleep(pause * self._draw.uniform(0.5, 1.5))
            pause = min(2.0, 2 * pause)

    def _item(self, user: str, number: int) -> str:
        """Of a user's event with this number."""
        return self._draw.choice(self.items)

    async def _ask(
        self, client: Client, method: str, path: str, body: object = None
    ) -> dict[str, Any] | None:
        began = time.monotonic()
        try:
            reply = await client.ask(method, path, body)
        except OSError:
            self.answers.append(Answer(began, time.monotonic() - began, method, None))
            return None
        took, found = time.monotonic() - began, reply.json
        if reply.status not in (200, 503):
            self.wrong.append(f"{method} {reply.status}: {found}")
        elif reply.status == 503 and b"retry-after:" not in reply.head:
            self.wrong.append(f"{method} 503 without Retry-After: {found}")
        self.answers.append(Answer(began, took, method, reply.status, found.get("stale", False)))
        return found if reply.status == 200 else None


def slowest(answers: Iterable[Answer]) -> float:
    return max((answer.took for answer in answers), default=0.0)

"""Requests of many kinds, good and bad, so that everything that is counted moves."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import httpx

DAY_S = 86_400


def client_of(url: str) -> httpx.AsyncClient:
    """A client with room for bursts. It drops idle connections before the service does, which
    may be at the very moment a request is sent."""
    limits = httpx.Limits(max_connections=400, keepalive_expiry=2)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=60)


class Load:
    """Sends requests to a service and counts the answers in `statuses`.

    Args:
        items: ids that the model knows.
        users: how many users there are to draw from.
    """

    def __init__(
        self, client: httpx.AsyncClient, items: Sequence[str], *, users: int, seed: int = 0
    ) -> None:
        self._client = client
        self._items = items
        self._users = users
        self._draw = random.Random(seed)
        self._posted: list[dict[str, Any]] = []
        self.statuses: Counter[int] = Counter()
        self._kinds: dict[Callable[[], Awaitable[None]], float] = {
            self.recommend: 49.5,
            self.explain: 0.5,
            self.post: 28,
            self.post_again: 3,
            self.post_late: 3,
            self.post_unknown_item: 3,
            self.post_batch: 2,
            self.read_user: 3,
            self.ask_for_unknown_user: 4,
            self.ask_for_user_of_unknown_items: 2,
            self.post_conflict: 0.5,
            self.send_nonsense: 0.5,
            self.erase: 0.5,
            self.change_item: 0.5,
        }

    async def fill(self, interactions: int) -> None:
        """Gives each user so many interactions, an hour apart."""
        now = time.time()
        for number in range(self._users):
            body = [
                {
                    "user_id": f"user-{number}",
                    "item_id": self._item(),
                    "timestamp": now - 3600 * (interactions - i),
                }
                for i in range(interactions)
            ]
            await self._send("POST", "/interactions/batch", json={"interactions": body})

    async def run(self, seconds: float, rate: Callable[[float], float]) -> None:
        """Sends `rate(t)` requests a second, t being the seconds since the start, and waits for no
        answer before the next."""
        started = at = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            while (now := time.monotonic()) < started + seconds:
                while at < now:
                    requests.create_task(self._any())
                    at += self._draw.expovariate(rate(at - started))
                await asyncio.sleep(0.01)

    async def each_kind(self) -> None:
        """Sends one request of each kind."""
        for kind in self._kinds:
            await kind()

    async def burst(self, requests: int) -> None:
        """Sends many requests at once."""
        await asyncio.gather(*(self.recommend() for _ in range(requests)))

    async def _any(self) -> None:
        (kind,) = self._draw.choices(list(self._kinds), list(self._kinds.values()))
        await kind()

    async def _send(self, method: str, path: str, **options: Any) -> None:
        answer = await self._client.request(method, path, **options)
        self.statuses[answer.status_code] += 1

    def _user(self) -> str:
        # Few are active and many are not, as in life.
        return f"user-{int(self._users * self._draw.random() ** 2)}"

    def _item(self) -> str:
        return self._draw.choice(self._items)

    async def recommend(self) -> None:
        await self._send("GET", "/recommend", params={"user_id": self._user(), "k": 10})

    async def explain(self) -> None:
        body = {"user_id": self._user(), "item_id": self._item()}  # so that there is a reason
        await self._send("POST", "/interactions", json=body)
        params = {"user_id": body["user_id"], "explain": True}
        await self._send("GET", "/recommend", params=params)

    async def post(self) -> None:
        body = {"user_id": self._user(), "item_id": self._item(), "event_id": uuid4().hex}
        self._posted = [*self._posted[-99:], body]
        await self._send("POST", "/interactions", json=body)

    async def post_again(self) -> None:
        if self._posted:
            await self._send("POST", "/interactions", json=self._draw.choice(self._posted))

    async def post_conflict(self) -> None:
        if self._posted:
            body = self._draw.choice(self._posted) | {"item_id": "another"}
            await self._send("POST", "/interactions", json=body)

    async def post_late(self) -> None:
        body = {"user_id": self._user(), "item_id": self._item(), "timestamp": time.time() - DAY_S}
        await self._send("POST", "/interactions", json=body)

    async def post_unknown_item(self) -> None:
        body = {"user_id": self._user(), "item_id": "new-in-the-shop"}
        await self._send("POST", "/interactions", json=body)

    async def post_batch(self) -> None:
        body = [
            {"user_id": self._user(), "item_id": self._item()}
            for _ in range(self._draw.randrange(5, 30))
        ]
        await self._send("POST", "/interactions/batch", json={"interactions": body})

    async def read_user(self) -> None:
        path = self._draw.choice(("", "/history"))
        await self._send("GET", f"/users/{self._user()}{path}")

    async def ask_for_unknown_user(self) -> None:
        await self._send("GET", "/recommend", params={"user_id": uuid4().hex})

    async def ask_for_user_of_unknown_items(self) -> None:
        user = f"newcomer-{self._draw.randrange(20)}"
        await self._send("POST", "/interactions", json={"user_id": user, "item_id": "new"})
        await self._send("GET", "/recommend", params={"user_id": user})

    async def send_nonsense(self) -> None:
        future = {"user_id": "u", "item_id": "i", "timestamp": time.time() + DAY_S}
        await self._send("POST", "/interactions", json=future)
        await self._send("GET", "/recommend", params={"user_id": "u", "k": 0})
        await self._send("GET", f"/users/{uuid4().hex}")
        await self._send("GET", "/no-such-page")

    async def erase(self) -> None:
        await self._send("DELETE", f"/users/{self._user()}")

    async def change_item(self) -> None:
        record = {"hidden": self._draw.random() < 0.5}
        await self._send("PUT", "/items/new-in-the-shop", json=record)

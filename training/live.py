"""The `service` mode of evaluation: histories replayed through a running service over HTTP."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from model import UNKNOWN_TIME, ModelConfig
from model.times import MILLISECONDS_FROM, iso
from training.dataset import Dataset, Histories, Int64s, Targets
from training.evaluation import SEEN, TOLERANCE, Interval, Ranking, SeenItems
from training.metrics import MISS

BATCH = 1000
ATTEMPTS = 8
LANES = 8


class LiveError(ValueError):
    """The service can't be evaluated; the message says what it answered."""


def replayable(histories: Histories, targets: Targets, config: ModelConfig) -> Targets:
    """The targets that a service can be asked for as they were.

    An interaction without a time gets the service's clock, and a request without one is asked
    for now; where the model looks at either, such users can't be compared.
    """
    unknown = np.concatenate([[0], np.cumsum(histories.times == UNKNOWN_TIME)])
    fit = np.ones(len(targets), dtype=np.bool_)
    if config.time != "none":
        fit &= unknown[targets.ends] == unknown[histories.offsets[targets.users]]
    if config.uses_request_time:
        fit &= targets.times != UNKNOWN_TIME
    return targets.take(np.flatnonzero(fit))


async def rank_through_service(
    client: httpx.AsyncClient,
    dataset: Dataset,
    targets: Targets,
    *,
    at_target_time: bool,
    identity: str | None = None,
    top: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Posts each target's history under a user id of its own, asks for recommendations, deletes.

    Args:
        client: its base URL is the service's, its headers carry the API key if there is one.
        at_target_time: ask for the recommendation at the target's own time; else now.
        identity: the service must serve this model; None: any.
        top: ranks are known up to this K (at most V); it is the ranking's `limit`.
        progress: is told how many targets were ranked.

    Raises:
        LiveError: the service refuses a request, does not answer, or has another model.
    """
    replay = _Replay(client, dataset, targets, at_target_time, min(top, dataset.n_items), progress)
    await replay.check_model(identity)
    return await replay.run()


class _Replay:
    def __init__(
        self,
        client: httpx.AsyncClient,
        dataset: Dataset,
        targets: Targets,
        at_target_time: bool,
        top: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.client, self.dataset, self.targets = client, dataset, targets
        self.at_target_time, self.top, self.progress = at_target_time, top, progress
        self.accepted = {"applied", "duplicate"}
        if (dataset.histories.times == UNKNOWN_TIME).any():
            self.accepted.add("late")  # after one that got the service's clock
        self.tag = f"evaluate-{secrets.token_hex(4)}"
        self.index_of = {item: index for index, item in enumerate(dataset.item_ids, 1)}
        size = len(targets)
        self.ranks = {seen: np.full(size, MISS, dtype=np.int64) for seen in SEEN}
        self.intervals = {seen: Interval(np.full(size, MISS), np.full(size, MISS)) for seen in SEEN}
        self.scores = np.full(size, np.nan, dtype=np.float32)
        self.top_items = np.zeros((size, top), dtype=np.int64)
        self.top_scores = np.full((size, top), -np.inf, dtype=np.float32)

    async def check_model(self, identity: str | None) -> None:
        served = (await self._ask("GET", "/readyz", attempts=1)).get("model")
        # Rules for kinds change nothing for interactions without one.
        if identity is not None and re.sub(r"-kinds-[0-9a-f]{8}$", "", str(served)) != identity:
            raise LiveError(
                f"the service at {self.client.base_url} serves model {served}, not {identity}"
            )

    async def run(self) -> Ranking:
        lanes = asyncio.Semaphore(LANES)

        async def lane(rows: Int64s) -> None:
            async with lanes:
                await self._group(rows)

        try:
            async with asyncio.TaskGroup() as tasks:
                for rows in self._groups():
                    tasks.create_task(lane(rows))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return Ranking(
            targets=self.targets,
            kept=self.ranks["kept"],
            filtered=self.ranks["filtered"],
            kept_interval=self.intervals["kept"],
            filtered_interval=self.intervals["filtered"],
            scores=self.scores,
            top_items=self.top_items,
            top_scores=self.top_scores,
            limit=self.top,
        )

    def _groups(self) -> list[Int64s]:
        """Rows whose histories fill about one batch together, a long one by itself."""
        lengths = self.targets.ends - self.dataset.histories.offsets[self.targets.users]
        group = (np.cumsum(lengths) - lengths) // BATCH
        return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(group)) + 1)

    def _user(self, row: int) -> str:
        return f"{self.tag}-{self.dataset.user_ids[self.targets.users[row]]}"

    async def _group(self, rows: Int64s) -> None:
        try:
            events = [event for row in rows for event in self._events(row)]
            for begin in range(0, len(events), BATCH):  # in turn: the order of a user is kept
                await self._post(events[begin : begin + BATCH])
            await asyncio.gather(*(self._rank(row) for row in rows))
        except BaseException:
            with suppress(LiveError):
                await self._delete(rows, attempts=1)
            raise
        await self._delete(rows)
        if self.progress is not None:
            self.progress(len(rows))

    def _events(self, row: int) -> list[dict[str, Any]]:
        histories, user = self.dataset.histories, self._user(row)
        begin = histories.offsets[self.targets.users[row]]
        events = []
        for place in range(int(begin), int(self.targets.ends[row])):
            event = {
                "user_id": user,
                "item_id": self.dataset.item_ids[histories.items[place] - 1],
                "event_id": f"{self.tag}-{place}",
            }
            if histories.times[place] != UNKNOWN_TIME:
                event["timestamp"] = _timestamp(int(histories.times[place]))
            events.append(event)
        return events

    async def _post(self, events: Sequence[dict[str, Any]]) -> None:
        for attempt in range(ATTEMPTS):
            reply = await self._ask("POST", "/interactions/batch", json={"interactions": events})
            failed = []
            for event, result in zip(events, reply["results"], strict=True):
                if result["status"] == "failed":
                    failed.append(event)
                elif result["status"] not in self.accepted:
                    raise LiveError(f"the service answered {result} to {event}")
            if not failed:
                return
            # A user's later interactions fail with the first that does, so the order is kept.
            events = failed
            await asyncio.sleep(_pause(attempt))
        raise LiveError(f"the service keeps failing to log interactions: {result}")

    async def _rank(self, row: int) -> None:
        for seen in SEEN:
            query: dict[str, str | int] = {
                "user_id": self._user(row),
                "k": self.top,
                "exclude_seen": "true" if seen == "filtered" else "false",
            }
            if self.at_target_time:
                query["at"] = _timestamp(int(self.targets.times[row]))
            reply = await self._ask("GET", "/recommend", params=query)
            if reply["source"] != "model":
                raise LiveError(
                    f"the service recommends what is {reply['source']}, not from its model"
                )
            self._note(row, seen, reply["items"])

    def _note(self, row: int, seen: SeenItems, listed: Sequence[dict[str, Any]]) -> None:
        try:
            items = np.array([self.index_of[item["item_id"]] for item in listed], dtype=np.int64)
        except KeyError as error:
            raise LiveError(
                f"the service recommends {error}, which is no item of the artefact"
            ) from None
        scores = np.array([item["score"] for item in listed], dtype=np.float32)
        if seen == "kept":
            self.top_items[row, : len(items)] = items
            self.top_scores[row, : len(items)] = scores
        (found,) = np.nonzero(items == self.targets.items[row])
        if len(found):
            own = scores[found[0]]
            if seen == "kept":
                self.scores[row] = own
            self.ranks[seen][row] = (scores >= own).sum()
            self.intervals[seen].best[row] = (scores > own + TOLERANCE).sum() + 1
            self.intervals[seen].worst[row] = (scores >= own - TOLERANCE).sum()

    async def _delete(self, rows: Int64s, attempts: int = ATTEMPTS) -> None:
        paths = [f"/users/{quote(self._user(row), safe='')}" for row in rows]
        await asyncio.gather(*(self._ask("DELETE", path, attempts=attempts) for path in paths))

    async def _ask(
        self, method: str, path: str, *, attempts: int = ATTEMPTS, **content: Any
    ) -> dict[str, Any]:
        problem = ""
        for attempt in range(attempts):
            pause = _pause(attempt)
            try:
                response = await self.client.request(method, path, **content)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}"
            else:
                if response.is_success:
                    return dict(response.json())
                problem = f"{response.status_code} {response.text[:300]}"
                if response.status_code not in (429, 503):
                    break
                pause = float(response.headers.get("Retry-After", pause))
            if attempt + 1 < attempts:
                await asyncio.sleep(pause)
        raise LiveError(f"{method} {str(self.client.base_url).rstrip('/')}{path}: {problem}")


def _pause(attempt: int) -> float:
    return 0.1 * 2.0**attempt


def _timestamp(ms: int) -> int | str:
    return ms if ms >= MILLISECONDS_FROM else iso(ms)  # a smaller number would be read as seconds

"""The `service` mode of evaluation: histories replayed through a running service."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np

from model import UNKNOWN_TIME, ModelConfig
from model.times import iso
from tim4rec_client import AsyncClient, Interaction, ServiceError
from tim4rec_client.answers import RecommendedItem
from training.dataset import Dataset, Histories, Int64s, Targets
from training.evaluation import SERVED, TOLERANCE, Interval, Ranking, SeenItems
from training.metrics import MISS

BATCH = 1000
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


async def require_model(client: AsyncClient, identity: str) -> None:
    """Raises LiveError unless this model is served."""
    try:
        served = (await client.ready())["model"]
    except ServiceError as error:
        raise LiveError(f"the service can't be evaluated: {error}") from error
    # Rules for kinds change nothing for interactions without one.
    if re.sub(r"-kinds-[0-9a-f]{8}$", "", served) != identity:
        raise LiveError(f"the service serves model {served}, not {identity}")


async def rank_through_service(
    client: AsyncClient,
    dataset: Dataset,
    targets: Targets,
    *,
    at_target_time: bool,
    top: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Posts each target's history under a user id of its own, asks for recommendations, deletes.

    Args:
        at_target_time: ask for the recommendation at the target's own time; else now.
        top: ranks are known up to this K (at most V); it is the ranking's `limit`.
        progress: is told how many targets were ranked.

    Raises:
        LiveError: the service refuses a request, or does not answer.
    """
    replay = _Replay(client, dataset, targets, at_target_time, min(top, dataset.n_items), progress)
    try:
        return await replay.run()
    except ServiceError as error:
        raise LiveError(f"the service can't be evaluated: {error}") from error


class _Replay:
    def __init__(
        self,
        client: AsyncClient,
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
        self.ranks = {seen: np.full(size, MISS, dtype=np.int64) for seen in SERVED}
        self.intervals = {
            seen: Interval(np.full(size, MISS), np.full(size, MISS)) for seen in SERVED
        }
        self.scores = np.full(size, np.nan, dtype=np.float32)
        self.top_items = np.zeros((size, top), dtype=np.int64)
        self.top_scores = np.full((size, top), -np.inf, dtype=np.float32)

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
            weighed=self.ranks["weighed"],
            filtered=self.ranks["filtered"],
            weighed_interval=self.intervals["weighed"],
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
            await self._post([event for row in rows for event in self._events(row)])
            await asyncio.gather(*(self._rank(row) for row in rows))
        except BaseException:
            with suppress(ServiceError):
                await self._erase(rows)
            raise
        await self._erase(rows)
        if self.progress is not None:
            self.progress(len(rows))

    def _events(self, row: int) -> Iterable[Interaction]:
        histories, user = self.dataset.histories, self._user(row)
        begin = histories.offsets[self.targets.users[row]]
        for place in range(int(begin), int(self.targets.ends[row])):
            time = int(histories.times[place])
            yield Interaction(
                user,
                self.dataset.item_ids[histories.items[place] - 1],
                None if time == UNKNOWN_TIME else iso(time),
                event_id=f"{self.tag}-{place}",
            )

    async def _post(self, events: Sequence[Interaction]) -> None:
        results = await self.client.post_all(events, batch=BATCH)
        for event, result in zip(events, results, strict=True):
            if result["status"] not in self.accepted:
                raise LiveError(f"the service answered {result} to {event}")

    async def _rank(self, row: int) -> None:
        for seen in SERVED:
            answer = await self.client.recommend(
                self._user(row),
                self.top,
                at=iso(int(self.targets.times[row])) if self.at_target_time else None,
                exclude_seen=seen == "filtered",
                live=False,  # what others do is in no offline mode
            )
            if answer["source"] != "model":
                raise LiveError(
                    f"the service recommends what is {answer['source']}, not from its model"
                )
            self._note(row, seen, answer["items"])

    def _note(self, row: int, seen: SeenItems, listed: Sequence[RecommendedItem]) -> None:
        try:
            items = np.array([self.index_of[item["item_id"]] for item in listed], dtype=np.int64)
        except KeyError as error:
            raise LiveError(
                f"the service recommends {error}, which is no item of the artefact"
            ) from None
        scores = np.array([item["score"] for item in listed], dtype=np.float32)
        if seen == "weighed":
            self.top_items[row, : len(items)] = items
            self.top_scores[row, : len(items)] = scores
        (found,) = np.nonzero(items == self.targets.items[row])
        if len(found):
            own = scores[found[0]]
            if seen == "weighed":
                self.scores[row] = own
            self.ranks[seen][row] = (scores >= own).sum()
            self.intervals[seen].best[row] = (scores > own + TOLERANCE).sum() + 1
            self.intervals[seen].worst[row] = (scores >= own - TOLERANCE).sum()

    async def _erase(self, rows: Int64s) -> None:
        await asyncio.gather(*(self.client.erase(self._user(row)) for row in rows))

"""The other way to serve the same model: histories in Redis, the window recomputed for each answer.

    python -m benchmarks.window_app artefacts/amazon-beauty --redis unix:///tmp/s --window 200

Written as one would who has no states: POST /interactions appends to the user's list, cut to the
window, in one round trip; GET /recommend reads it, and what waits together is computed together,
padded to the longest, in one thread off the event loop, while the next ones arrive. It uses what
the service uses: hiredis, uvloop, one thread of arithmetic, the same top-K, seen items left out.
There is no version, no deduplication and nothing that keeps two appends apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import redis.asyncio
import torch
import typer
import uvicorn
from fastapi import FastAPI, Query

from model.artefact import Artefact, load_artefact
from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.http.schemas import Id, Interaction, RecommendedItem

Asked = tuple[list[Any], int, asyncio.Future[Ranking]]

MOST_AT_ONCE = 64
CONNECTIONS = 64


class Recomputing:
    """Answers what waits, in batches."""

    def __init__(self, artefact: Artefact) -> None:
        self.model = artefact.model
        self.vocabulary = {item: i + 1 for i, item in enumerate(artefact.items.ids)}
        self.retrieval = Retrieval.of(artefact)
        self.waiting: asyncio.Queue[Asked] = asyncio.Queue()

    async def ask(self, history: list[Any], k: int) -> Ranking:
        done: asyncio.Future[Ranking] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((history, k, done))
        return await done

    async def run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < MOST_AT_ONCE and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            rankings = await asyncio.to_thread(self._rankings, batch)
            for (_, _, done), ranking in zip(batch, rankings, strict=True):
                if not done.done():
                    done.set_result(ranking)

    @torch.inference_mode()
    def _rankings(self, batch: list[Asked]) -> list[Ranking]:
        lengths = [len(history) for history, _, _ in batch]
        items = np.zeros((len(batch), max(1, *lengths)), np.int64)
        times = np.zeros(items.shape, np.int64)
        for row, (history, _, _) in enumerate(batch):
            for place, event in enumerate(history):
                item, _, at = event.rpartition(b" ")
                items[row, place], times[row, place] = self.vocabulary[item.decode()], int(at)
        size = torch.tensor(lengths).clamp(min=1)
        now = torch.full((len(batch), 1), int(time.time() * 1000)).expand(-1, items.shape[1])
        queries = self.model(torch.from_numpy(items), torch.from_numpy(times), now)
        query = queries[torch.arange(len(batch)), size - 1]
        asks = [
            Ask(k, row[:n].astype(np.int32))
            for (_, k, _), row, n in zip(batch, items, lengths, strict=True)
        ]
        return self.retrieval.answer(query, asks)


def create_app(artefact: Artefact, url: str, window: int) -> FastAPI:
    """The application, for one process."""
    recomputing = Recomputing(artefact)
    client = redis.asyncio.Redis.from_pool(
        redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS)
    )
    ids = artefact.items.ids

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(recomputing.run())
        yield
        running.cancel()
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def readyz() -> None:
        await client.ping()

    @app.post("/interactions")
    async def post_interaction(body: Interaction) -> dict[str, str]:
        at = int(time.time() * 1000) if body.timestamp is None else body.timestamp
        async with client.pipeline(transaction=False) as pipeline:
            pipeline.rpush(f"h:{body.user_id}", f"{body.item_id} {at}")
            pipeline.ltrim(f"h:{body.user_id}", -window, -1)
            await pipeline.execute()
        return {"status": "applied"}

    @app.get("/recommend")
    async def recommend(
        user_id: Annotated[Id, Query()], k: Annotated[int, Query(ge=1)] = 10
    ) -> list[RecommendedItem]:
        history = await client.lrange(f"h:{user_id}", 0, -1)
        found = await recomputing.ask(history, k)
        pairs = zip(found.items.tolist(), found.scores.tolist(), strict=True)
        return [
            RecommendedItem(item_id=ids[row - 1], score=score, path="model") for row, score in pairs
        ]

    return app


def main(
    artefact: Annotated[Path, typer.Argument()],
    redis_url: Annotated[str, typer.Option("--redis")],
    window: Annotated[int, typer.Option()],
    port: Annotated[int, typer.Option()],
) -> None:
    """Serve it until a signal."""
    torch.set_num_threads(1)
    app = create_app(load_artefact(artefact), redis_url, window)
    uvicorn.run(app, port=port, access_log=False, log_config=None)


if __name__ == "__main__":
    typer.run(main)

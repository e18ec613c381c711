"""FastAPI alone: routes that take what the service's take, and answer without doing anything.

python -m benchmarks.constant_app --port 8001
"""

from __future__ import annotations

from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI, Query

from service.http.schemas import (
    Id,
    Interaction,
    InteractionResult,
    Recommendations,
    RecommendedItem,
)

app = FastAPI()

TEN = [
    RecommendedItem(item_id=f"{place:08}", score=1 / (1 + place), path="model")
    for place in range(10)
]


@app.get("/readyz")
async def readyz() -> None: ...


@app.post("/interactions")
async def post_interaction(body: Interaction) -> InteractionResult:
    """Validates the body."""
    return InteractionResult(
        user_id=body.user_id,
        item_id=body.item_id,
        version=1,
        status="applied",
        timestamp="2026-01-31T12:00:00.000Z",
    )


@app.get("/recommend", response_model_exclude_none=True)
async def recommend(
    user_id: Annotated[Id, Query()], k: Annotated[int, Query(ge=1)] = 10
) -> Recommendations:
    """Ten items, always the same."""
    return Recommendations(
        user_id=user_id,
        items=TEN[:k],
        version=1,
        at=1_769_860_800_000,
        source="model",
        stale=False,
        history_truncated=False,
        model="none",
        edition="none",
        next=None,
    )


def main(port: int = 8001) -> None:
    """Serve them with the service's settings of uvicorn, until a signal."""
    uvicorn.run(app, port=port, access_log=False, log_config=None)


if __name__ == "__main__":
    typer.run(main)

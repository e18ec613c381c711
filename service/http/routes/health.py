"""/livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from service.http.problems import ProblemError, declared
from service.observe import values
from service.observe.exposition import exposition
from service.store.errors import StoreError

router = APIRouter(tags=["operation"])


@router.get("/livez", summary="Is the process there?")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", summary="Can it answer?", responses=declared(503))
async def readyz(request: Request) -> dict[str, str]:
    """The model is warm and the process not about to stop; with `store_away=refuse`, the store
    answers as well."""
    if request.app.state.drain.begun:
        raise ProblemError(503, "draining")
    services = getattr(request.app.state, "services", None)
    if services is None:
        raise ProblemError(503, "starting")
    ready = {"status": "ready", "model": services.engine.identity}
    if services.settings.store_away != "refuse":
        # Every process has the same store: taken out of traffic, none would answer reads.
        return ready | ({"store": "away"} if services.log.store.failing else {})
    try:
        await services.log.store.ping()
    except StoreError as error:
        raise ProblemError(503, str(error)) from None
    return ready


@router.get("/metrics", include_in_schema=False)
async def get_metrics() -> Response:
    """Prometheus' text format; of all workers."""
    values.write()
    body, media_type = await asyncio.to_thread(exposition)
    return Response(body, headers={"Content-Type": media_type})

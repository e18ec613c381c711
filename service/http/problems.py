"""Errors as RFC 9457 problem documents, validation included."""

from __future__ import annotations

import http
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.catalogue.turns import TooManyWait
from service.engine.requests import Overloaded
from service.http import faults
from service.http.schemas import Problem
from service.observe import metrics, request_context
from service.store.errors import InvalidRequest, RecordDamaged, StoreError, StoreUnavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
LONGEST_DETAIL = 1000


class ProblemError(Exception):
    """A request that can't be carried out, in the caller's words."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers
        said = {"field": field, "message": detail.removeprefix(f"{field}: ")}
        self.errors = [said] if field else None


def problem(
    status: int,
    detail: str,
    errors: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
    more_errors: int | None = None,
) -> JSONResponse:
    context = request_context.current.get()
    body = Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=faults.clipped(detail, LONGEST_DETAIL),
        errors=errors,
        more_errors=more_errors,
        request_id=context.request_id if context else None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, media_type=MEDIA_TYPE, headers=headers
    )


def refusal(error: ProblemError) -> JSONResponse:
    return problem(error.status, error.detail, error.errors, error.headers)


def invalid(errors: Sequence[Any]) -> JSONResponse:
    """The answer to a request with these errors of pydantic's."""
    found, others = faults.named(errors), max(0, len(errors) - faults.MOST_NAMED)
    detail = f"{found[0]['field']}: {found[0]['message']}"
    if others:
        detail += f"; {len(errors) - 1} more faults, {len(found) - 1} of them named in errors"
    return problem(422, detail, found, more_errors=others or None)


def _next(request: Request, error: Exception) -> str:
    """What a 503 means for its caller."""
    logs_events = request_context.route_of(request.scope).startswith("/interactions")
    again = "try again with the same event_id" if logs_events else "try again"
    if isinstance(error, Overloaded):
        return f"nothing was done: {again}"
    if not logs_events and request.method in ("GET", "HEAD"):
        return again
    if logs_events and not isinstance(error, StoreUnavailable):
        return "nothing was stored: try again later"
    return f"the outcome is unknown: {again}"


def _let_go(error: Exception) -> None:
    """Of what it came through. The framework's own function keeps the error that it raises, and so
    both, and the request's body, would stay until somebody looks for garbage."""
    traceback.clear_frames(error.__traceback__)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Makes every error of the app a problem document."""

    @app.exception_handler(ProblemError)
    async def _(request: Request, error: ProblemError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        _let_go(error)
        return invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        _let_go(error)
        # How the framework says what it says of no field; but a caller who has left is no fault.
        if error.status_code == 400 and not isinstance(error.__cause__, ClientDisconnect):
            said = {"field": "body", "message": faults.UNREADABLE}
            return problem(422, faults.UNREADABLE, [said])
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(InvalidRequest)
    async def _(request: Request, error: InvalidRequest) -> JSONResponse:
        return problem(422, str(error))

    @app.exception_handler(RecordDamaged)
    async def _(request: Request, error: RecordDamaged) -> JSONResponse:
        return problem(500, f"{error}; trying again does not help: restore the record, or erase it")

    @app.exception_handler(StoreError)
    @app.exception_handler(Overloaded)
    async def _(request: Request, error: Exception) -> JSONResponse:
        what = _next(request, error)
        return problem(503, f"{error}; {what}", headers={"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(TooManyWait)
    async def _(request: Request, error: TooManyWait) -> JSONResponse:
        metrics.REFUSED["catalogue"].inc()
        detail = "too many filters, searches and batches of items wait; nothing was done: try again"
        return problem(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        # The server closes the connection after a fault: a caller has to know before the next
        # request on it.
        headers = {"Connection": "close"}
        return problem(500, "an error of the service; its log has the details", headers=headers)

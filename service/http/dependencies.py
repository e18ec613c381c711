"""What routes get handed: the engine, the model, the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from starlette.types import ASGIApp, Receive, Scope, Send

from service.bulk.example_people import ExamplePeople
from service.bulk.user_listing import UserListing
from service.catalogue.catalogue import Catalogue
from service.catalogue.cursor import Seal
from service.engine.engine import Engine
from service.engine.explanation import Explainer
from service.feedback.popularity import Popularity
from service.http.faults import LONGEST_NAME, clipped
from service.http.problems import ProblemError
from service.models.decider import Decider
from service.models.deployer import Deployer
from service.models.deployment import Deployment
from service.models.served_model import ServedModel
from service.models.serving_context import ServingContext
from service.settings import Settings
from service.store.event_log import EventLog


@dataclass(frozen=True)
class Services:
    """What answers a request.

    Attributes:
        decider: None: trials are not counted.
        served: the model that answers; of no user, the base.
        users: lists them.
        people: some of them, for the page.
    """

    context: ServingContext
    deployer: Deployer
    decider: Decider | None
    deployment: Deployment
    served: ServedModel
    users: UserListing
    people: ExamplePeople

    @property
    def settings(self) -> Settings:
        return self.context.settings

    @property
    def log(self) -> EventLog:
        return self.context.log

    @property
    def popularity(self) -> Popularity:
        return self.context.popularity

    @property
    def seal(self) -> Seal:
        return self.context.seal

    @property
    def engine(self) -> Engine:
        return self.served.engine

    @property
    def catalogue(self) -> Catalogue:
        return self.served.catalogue

    @property
    def explainer(self) -> Explainer:
        return self.served.explainer

    def of(self, user_id: str) -> Services:
        """With the model that answers this user."""
        served = self.deployment.of(user_id)
        return self if served is self.served else replace(self, served=served)

    async def write_items(self, records: Mapping[str, bytes | None]) -> dict[str, bool]:
        """`FollowedRecords.write`; all models of this process know when it returns."""
        before = await self.catalogue.records.write(records)
        for other in self.deployment.models:
            if other is not self.served:
                await other.catalogue.records.refresh()
        return before


def check_k(services: Services, k: int) -> None:
    """Raises ProblemError: an answer never has so many items."""
    most = services.settings.max_k
    if k > most:
        raise ProblemError(422, f"k: at most {most}, not {k}", field="k")


_HELD = "tim4rec.services"


def services_of(scope: Scope, app: FastAPI) -> Services | None:
    """Those that a request began with; None: the application is not running."""
    found: Services | None = scope.get(_HELD) or app.state.services
    return found


class HoldModels:
    """Keeps the models that a request begins with open until it is answered."""

    def __init__(self, app: ASGIApp, *, owner: FastAPI) -> None:
        self.app, self.owner = app, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services | None = self.owner.state.services
        if services is None:
            await self.app(scope, receive, send)
            return
        scope[_HELD] = services
        services.deployment.hold()
        try:
            await self.app(scope, receive, send)
        finally:
            services.deployment.release()


async def _services(request: Request) -> Services:
    services = services_of(request.scope, request.app)
    assert services is not None
    return services


ServicesDep = Annotated[Services, Depends(_services)]

declared_key = Depends(APIKeyHeader(name="X-API-Key", auto_error=False))
"""Says in the documentation that a route wants a key; what asks for it stands before all routes."""


async def require_known_query(request: Request) -> None:
    """Refuses parameters that the route does not take: a misspelt one would be ignored; and a query
    that is no percent-encoded UTF-8."""
    text: bytes = request.scope["query_string"]
    if not text:
        return
    try:
        unquote_to_bytes(text.decode("ascii")).decode()
    except UnicodeDecodeError:
        raise ProblemError(422, "query: must be UTF-8, percent-encoded", field="query") from None
    known = _query_of(request.scope["route"])
    for name in request.query_params:
        if name not in known:
            near = difflib.get_close_matches(name[:LONGEST_NAME], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            name = clipped(name, LONGEST_NAME)
            raise ProblemError(422, f"{name}: no parameter of this route; {hint}", field=name)


def _query_of(route: APIRoute) -> list[str]:
    """The names of what a route takes from the query: of parameters, or of a model's fields."""
    found: list[str] = []
    for field in route.dependant.query_params:
        of_model = getattr(field.field_info.annotation, "model_fields", None)
        found += [field.alias] if of_model is None else of_model
    return found

"""What routes get handed: the engine, the model, the settings, and who may call."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from model.artefact import Artefact
from service.catalogue import Catalogue
from service.engine import Engine
from service.event_log import EventLog
from service.explanation import Explainer
from service.popularity import Popularity
from service.problems import ProblemError
from service.settings import Settings


@dataclass(frozen=True)
class Services:
    """The parts of a running process."""

    settings: Settings
    artefact: Artefact
    log: EventLog
    engine: Engine
    popularity: Popularity
    catalogue: Catalogue
    explainer: Explainer


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]

_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def require_key(services: ServicesDep, key: Annotated[str | None, Depends(_header)]) -> None:
    """Lets a request with one of the configured keys through, or all when none is configured."""
    allowed = [secret.get_secret_value().encode() for secret in services.settings.api_keys]
    given = (key or "").encode("latin-1")  # the bytes as sent
    # Every key is compared, so that the time does not tell which one was nearly right.
    if allowed and not any([hmac.compare_digest(given, one) for one in allowed]):
        raise ProblemError(401, "X-API-Key is missing or not one of this service's keys")

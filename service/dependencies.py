"""What routes get handed: the engine, the model, the settings, and who may call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from model.artefact import Artefact
from service.catalogue import Catalogue
from service.engine import Engine
from service.event_log import EventLog
from service.explanation import Explainer
from service.keys import Keys
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
    api_keys: Keys
    admin_keys: Keys


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]

_header = APIKeyHeader(name="X-API-Key", auto_error=False)
_Shown = Annotated[str | None, Depends(_header)]

CHALLENGE = {"WWW-Authenticate": 'APIKey realm="tim4rec", header="X-API-Key"'}


async def require_key(services: ServicesDep, key: _Shown) -> None:
    """Lets a request with one of the API keys through, or all when there is none."""
    if services.api_keys and not services.api_keys.have(key):
        raise ProblemError(
            401, "X-API-Key is missing or not one of this service's keys", headers=CHALLENGE
        )


async def require_admin(services: ServicesDep, key: _Shown) -> None:
    """Lets a request with one of the admin keys through, and nobody when there is none."""
    if not services.admin_keys:
        raise ProblemError(
            403, "this service has no admin keys: start it with TIM4REC_ADMIN_KEYS or its file"
        )
    if not services.admin_keys.have(key):
        raise ProblemError(
            401, "X-API-Key is missing or not one of this service's admin keys", headers=CHALLENGE
        )

"""/admin/model: which models are served."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from model.artefact import ArtefactError, load_artefact
from model.artefact_store import ArtefactStoreError, ModelNameError
from model.store_names import LISTED
from model.times import iso
from service.http.dependencies import Services, ServicesDep
from service.http.problems import ProblemError, declared
from service.http.schemas import Body
from service.models.model_folder import ModelFolder
from service.models.traffic_split import TrafficSplit, Variant

router = APIRouter(prefix="/admin/model", tags=["operation"])


class ModelChoice(Body):
    """A model for everybody, or on trial for a share of the users."""

    model: str = Field(
        min_length=1, max_length=255, description="name of an artefact in the setting `models_dir`"
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1,
        description="below 1: this share of the users gets it, always the same ones, and the "
        "others what everybody had",
    )


class SetModel(BaseModel):
    name: str
    identity: str = Field(description="that of the artefact")


class OpenModel(SetModel):
    model: str = Field(description="`model` of its answers: settings are a part of that")


class Process(BaseModel):
    """What one process serves, by what it last said of itself."""

    process: str
    version: int = Field(description="of the change that it has taken over")
    base: OpenModel
    trial: OpenModel | None
    share: float
    fault: str | None = Field(description="why it can't take over what is set")
    moved_users: int = Field(
        description="of the users in memory at the last change whose model it changed, those that "
        "have a state of their new one"
    )
    waiting_users: int = Field(description="the rest: each moves with its next request")
    said_at: str


class ModelsSet(BaseModel):
    """What is set."""

    version: int = Field(description="number of the change; 0: nothing was ever set")
    base: SetModel | None = Field(description="none: what each process was started with")
    trial: SetModel | None
    share: float = Field(description="of the users, those whom `trial` answers")


class ModelsServed(ModelsSet):
    """What is set, what may be, and what is."""

    available: list[SetModel] = Field(
        description=f"what may be, of the {LISTED} newest folders; nothing of it is checked"
    )
    available_fault: str | None = Field(description="why that is not known")
    processes: list[Process]


@router.post("", responses=declared(409, 422, 503))
async def set_model(body: ModelChoice, services: ServicesDep) -> ModelsSet:
    """Has every process take over a model. The one before serves until that is done.

    The artefact is loaded here first: one that can't be is refused.
    """
    folder = _folder(services)
    try:
        path = await asyncio.to_thread(folder.find, body.model)
        artefact = await asyncio.to_thread(load_artefact, path)
    except (ModelNameError, ArtefactError) as error:
        raise ProblemError(422, f"model: {error}", field="model") from None
    except ArtefactStoreError as error:
        raise ProblemError(503, str(error)) from None
    before = await _read(services)
    variant = Variant(body.model, artefact.edition)
    if body.share < 1 and variant.identity == _base_identity(services, before):
        raise ProblemError(
            422,
            "model: everybody has this one; put another on trial, or leave `share` out",
            field="model",
        )
    return await _set(services, before, before.chosen(variant, body.share))


@router.delete("", responses=declared(409, 503))
async def clear_model(services: ServicesDep) -> ModelsSet:
    """Has every process go back to the model that it was started with."""
    _folder(services)
    before = await _read(services)
    return await _set(services, before, before.cleared())


@router.get("", responses=declared(409, 503))
async def get_model(services: ServicesDep) -> ModelsServed:
    """What is set, what may be, and what each process serves."""
    folder = _folder(services)
    split = await _read(services)
    serving = await services.deployer.registry.serving()
    available, fault = dict[str, str](), None
    try:
        available = await asyncio.to_thread(folder.available)
    except ArtefactStoreError as error:
        fault = str(error)
    return ModelsServed(
        **_shown(split).model_dump(),
        available=[SetModel(name=name, identity=which) for name, which in available.items()],
        available_fault=fault,
        processes=[
            Process(process=process, said_at=iso(1000 * said.pop("at")), **said)
            for process, said in serving.items()
        ],
    )


def _folder(services: Services) -> ModelFolder:
    folder = services.deployer.folder
    if folder is None:
        raise ProblemError(
            409, "this service has no folder of models: start it with TIM4REC_MODELS_DIR"
        )
    return folder


async def _read(services: Services) -> TrafficSplit:
    try:
        return await services.deployer.registry.read()
    except ValueError as error:
        raise ProblemError(409, f"{error}: delete it, and set a model again") from None


async def _set(services: Services, before: TrafficSplit, after: TrafficSplit) -> ModelsSet:
    if not await services.deployer.registry.replace(before, after):
        raise ProblemError(409, "another change came first: look at what is set now")
    return _shown(after)


def _base_identity(services: Services, split: TrafficSplit) -> str:
    if split.base is not None:
        return split.base.identity
    return services.deployment.base.artefact.edition


def _shown(split: TrafficSplit) -> ModelsSet:
    return ModelsSet.model_validate(split, from_attributes=True)

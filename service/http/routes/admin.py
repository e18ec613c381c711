"""/admin/model: which models are served."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, BeforeValidator, Field

from model.artefact import ArtefactError, load_artefact
from model.artefact_store import ArtefactStoreError, ModelNameError
from model.kinds import KindRules
from model.store_names import LISTED
from model.times import iso
from service.http.dependencies import Services, ServicesDep
from service.http.problems import ProblemError, declared
from service.http.routes.users import decoded
from service.http.schemas import Body, example
from service.models.decision import Decision, Outcome, Reason
from service.models.model_folder import ModelFolder
from service.models.sequential_test import Comparison, compared
from service.models.served_model import require_kinds
from service.models.traffic_split import NoRoomError, TrafficSplit, Trial, Variant

router = APIRouter(prefix="/admin/model", tags=["operation"])


class ModelChoice(Body):
    """A model for everybody, or on trial for a share of the users."""

    model_config = example(model="shop-2026-11", share=0.1, decide=True)

    model: str = Field(
        min_length=1, max_length=255, description="name of an artefact in the setting `models_dir`"
    )
    share: Annotated[float, Field(ge=0.001, le=1)] = Field(
        1,
        description="below 1: a trial; this share of the users gets it, in thousandths, always the "
        "same ones",
    )
    decide: bool = Field(
        False,
        description="the trial ends by what its users take of what they are shown: it becomes the "
        "model for everybody, or is taken back",
    )
    live: bool = Field(True, description="false: without the artefact's mixture")


class AvailableModel(BaseModel):
    name: str
    identity: str = Field(description="that of the artefact, its edition")


class SetModel(AvailableModel):
    live: bool = Field(description="false: it is served without its mixture")


class SetTrial(SetModel):
    """A model on trial."""

    share: float = Field(description="of the users, those whom it answers")
    decide: bool
    since: str = Field(description="when it began, or was told to decide, if that was later")


class Users(BaseModel):
    """Users who have been observed for their whole time."""

    shown: int = Field(description="users who were shown something")
    taken: int = Field(description="of these, those who took something of it")


class Figures(BaseModel):
    """What the users of a trial do, beside those of the base."""

    base: Users
    trial: Users
    difference: float | None = Field(
        description="of the parts of users who took something, trial less base; none: there are no "
        "users yet"
    )
    low: float = Field(description="the difference is between this, and")
    high: float = Field(description="this, with 95 % certainty at all looks together")


class Standing(SetTrial):
    """A trial, and how it stands."""

    shown: int = Field(description="its users who were shown something, observed to the end")
    taken: int = Field(description="of these, those who took something of it")
    figures: Figures
    decision: Reason = Field(description="what the figures say by now")


class Decided(BaseModel):
    """A trial that ended by what its users did."""

    trial: str
    identity: str
    live: bool
    decision: Outcome
    reason: Reason = Field(description="better, worse; its time was over: not worse, or undecided")
    at: str
    by: str = Field(description="the process that decided")
    figures: Figures


class OpenModel(AvailableModel):
    model: str = Field(description="`model` of its answers: settings are a part of that")
    edition: str = Field("", description="`edition` of its answers")
    kinds: str | None = Field(
        None, description="the rules for kinds that it was trained by; none: all rows were alike"
    )


class OpenTrial(OpenModel):
    share: float


class Process(BaseModel):
    """What one process serves, by what it last said of itself."""

    process: str
    version: int = Field(description="of the change that it has taken over")
    base: OpenModel
    trials: list[OpenTrial] = []
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
    trials: list[SetTrial]


class ModelsServed(BaseModel):
    """What is set, what may be, and what is."""

    version: int
    kinds: str = Field(
        description="the rules for kinds by which this service takes interactions; a model that "
        "was trained by others can't be set"
    )
    base: SetModel | None
    trials: list[Standing]
    decisions: list[Decided] = Field(description="the latest first, 20 at most")
    available: list[AvailableModel] = Field(
        description=f"what may be, of the {LISTED} newest folders; nothing of it is checked"
    )
    available_fault: str | None = Field(description="why that is not known")
    processes: list[Process]


@router.post(
    "", summary="Serve a model, or try it on some users", responses=declared(409, 422, 503)
)
async def set_model(body: ModelChoice, services: ServicesDep) -> ModelsSet:
    """Has every process take over a model. The one before serves until that is done.

    The artefact is loaded here first: one that can't be is refused.
    """
    folder = models_folder(services)
    try:
        path = await asyncio.to_thread(folder.find, body.model)
        artefact = await asyncio.to_thread(load_artefact, path)
        require_kinds(artefact, KindRules.parse(services.settings.kinds))
    except (ModelNameError, ArtefactError) as error:
        raise ProblemError(422, f"model: {error}", field="model") from None
    except ArtefactStoreError as error:
        raise ProblemError(503, str(error)) from None
    if not body.live:
        if artefact.mixture is None:
            raise ProblemError(422, "live: this artefact has no mixture", field="live")
        artefact = artefact.without_mixture()
    before = await _read(services)
    variant = Variant(body.model, artefact.edition, body.live)
    if body.share == 1:
        if body.decide:
            raise ProblemError(
                422, "decide: only a trial does, with a share below 1", field="decide"
            )
        return await _set(services, before, before.promoted(variant, _now_ms()))
    _check_trial(services, before, variant, body)
    try:
        after = before.tried(variant, body.share, body.decide, _now_ms())
    except NoRoomError as error:
        raise ProblemError(422, f"share: {error}", field="share") from None
    return await _set(services, before, after)


@router.delete("", summary="Go back to the model of the start", responses=declared(409, 503))
async def clear_model(services: ServicesDep) -> ModelsSet:
    """Has every process go back to the model that it was started with; all trials end."""
    models_folder(services)
    before = await _read(services)
    return await _set(services, before, before.cleared())


@router.delete("/trials/{name}", summary="End a trial", responses=declared(404, 409, 422, 503))
async def end_trial(
    name: Annotated[
        str, BeforeValidator(decoded), Path(max_length=255, description="percent-encoded")
    ],
    services: ServicesDep,
) -> ModelsSet:
    """Takes a trial back: its users get what everybody has. Other trials go on."""
    models_folder(services)
    before = await _read(services)
    trial = before.trial(name)
    if trial is None:
        raise ProblemError(404, f"name: {name!r} is not on trial", field="name")
    return await _set(services, before, before.without(trial))


@router.get("", summary="See which models serve whom", responses=declared(409, 503))
async def get_model(services: ServicesDep) -> ModelsServed:
    """What is set, how trials stand, what may be set, and what each process serves."""
    folder = models_folder(services)
    split = await _read(services)
    serving = await services.deployer.registry.serving()
    available, fault = dict[str, str](), None
    try:
        available = await asyncio.to_thread(folder.available)
    except ArtefactStoreError as error:
        fault = str(error)
    shown = _shown(split)
    return ModelsServed(
        version=shown.version,
        kinds=str(KindRules.parse(services.settings.kinds)),
        base=shown.base,
        trials=[
            await _standing(services, trial, one)
            for trial, one in zip(split.trials, shown.trials, strict=True)
        ],
        decisions=[_decided(one) for one in split.decisions],
        available=[AvailableModel(name=name, identity=which) for name, which in available.items()],
        available_fault=fault,
        processes=[
            Process(process=process, said_at=iso(1000 * said.pop("at")), **said)
            for process, said in serving.items()
        ],
    )


def _check_trial(
    services: Services, before: TrafficSplit, variant: Variant, body: ModelChoice
) -> None:
    base = before.base
    identity = base.identity if base else services.deployment.base.artefact.edition
    if variant.identity == identity:
        raise ProblemError(
            422,
            "model: everybody has this one; put another on trial, or leave `share` out",
            field="model",
        )
    others = [trial for trial in before.trials if trial.name != variant.name]
    for other in others:
        if other.variant.identity == variant.identity:
            raise ProblemError(
                422, f"model: this one is on trial already, as {other.name}", field="model"
            )
    if len(others) >= services.settings.max_trials:
        names = ", ".join(other.name for other in others)
        raise ProblemError(
            409,
            f"model: {names} on trial already, and at most {services.settings.max_trials} may be "
            "(max_trials): take one back, or raise that",
        )
    if body.decide and services.context.outcomes is None:
        raise ProblemError(
            409, "decide: nothing is counted here: start with TIM4REC_OUTCOME_WINDOW_S"
        )


def models_folder(services: Services) -> ModelFolder:
    """Raises ProblemError: the service has none."""
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


def _shown(split: TrafficSplit) -> ModelsSet:
    base = split.base
    return ModelsSet(
        version=split.version,
        base=None if base is None else SetModel(**asdict(base)),
        trials=[
            SetTrial(
                **asdict(trial.variant),
                share=trial.share,
                decide=trial.decide,
                since=iso(trial.since_ms),
            )
            for trial in split.trials
        ],
    )


async def _standing(services: Services, trial: Trial, shown: SetTrial) -> Standing:
    decider = services.decider
    found = compared((), 1) if decider is None else await decider.figures(trial)
    return Standing(
        **shown.model_dump(),
        **asdict(found.trial),
        figures=_figures(found),
        decision="undecided" if decider is None else decider.found(found),
    )


def _figures(found: Comparison) -> Figures:
    return Figures.model_validate(asdict(found))


def _decided(one: Decision) -> Decided:
    return Decided(**asdict(one), at=iso(one.at_ms))


def _now_ms() -> int:
    return round(time.time() * 1000)

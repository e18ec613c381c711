"""`tim4rec learn`: the learner as one process, where it stands, and going back."""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from prometheus_client import start_http_server

from cli.console import CommandError, out, say
from cli.service_url import ServiceUrl
from cli.settings import chosen_settings
from cli.store import DataDir, Namespace, Redis, opened, require_data_dir
from learning import metrics
from learning.admin import Admin, AdminError
from learning.commands import Commands
from learning.duration import parse_duration
from learning.journal import Journal, open_journal
from learning.learner import Learner
from learning.lease import Lease, LeaseHeld, holder, this_process
from learning.rollback import RollbackError, roll_back
from learning.round import RoundFile
from learning.schedule import Schedule
from learning.serving import Serving
from learning.settings import LearnSettings
from learning.status import Status
from learning.training import Training
from learning.work_folder import work_folder
from model.artefact_store import ArtefactStore, ArtefactStoreError, open_artefact_store
from service.environment import LEARNER_PREFIX
from service.keys import keys_in
from service.observe import logs
from service.settings import Settings, secrets
from service.store.client import Store
from service.store.errors import StoreError

ANOTHER = 5
"""Exit status: another learner is at work."""
OWN_COMMAND = shlex.join([sys.executable, "-m", "cli.main"])
_NOT_FOR_COMMANDS = ("TIM4REC_ADMIN_KEYS", "TIM4REC_REDIS_URL", "TIM4REC_DATA_DIR")

learn = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def _option(name: str, meaning: str, **more: Any) -> Any:
    """An option that the environment gives too."""
    variable = LEARNER_PREFIX + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    return typer.Option(name, envvar=variable, help=meaning, **more)


def _duration(name: str, meaning: str) -> Any:
    return _option(name, meaning, metavar="DURATION")


Models = Annotated[
    str | None,
    _option(
        "--models", "Where models are published: the folder or URL the service takes them from.",
        metavar="URL", show_default="TIM4REC_MODELS_DIR",
    ),
]  # fmt: skip
Service = Annotated[str, _option("--service", "URL of the service.")]
AdminKey = Annotated[
    str | None,
    _option(
        "--admin-key", "Sent as X-API-Key.",
        show_default="the first of TIM4REC_ADMIN_KEYS or its file",
    ),
]  # fmt: skip
Work = Annotated[Path, _option("--work", "Folder for exports, candidates and the round under way.")]
ScoringEvery = Annotated[
    str, _duration("--scoring-every", "New scoring vectors, which keep all states; 0: never.")
]
WarmEvery = Annotated[str, _duration("--warm-every", "A warm start; 0: never.")]
ScratchEvery = Annotated[str, _duration("--scratch-every", "Training from nothing; 0: never.")]

SERVICE, WORK = "http://127.0.0.1:8000", Path("learner")
SCORING_EVERY, WARM_EVERY, SCRATCH_EVERY = "1h", "1d", "30d"


@learn.callback(invoke_without_command=True)
def run(
    ctx: typer.Context,
    models: Models = None,
    service: Service = SERVICE,
    admin_key: AdminKey = None,
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    work: Work = WORK,
    incumbent: Annotated[
        Path | None,
        _option(
            "--incumbent",
            "Model that the service was started with, where none is set in it and "
            "that one is not published either.",
            metavar="FOLDER",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="One round if one is due, for cron; else for ever.")
    ] = False,
    every: Annotated[str, _duration("--every", "Between two looks at what is due.")] = "10m",
    scoring_every: ScoringEvery = SCORING_EVERY,
    warm_every: WarmEvery = WARM_EVERY,
    scratch_every: ScratchEvery = SCRATCH_EVERY,
    least_events: Annotated[
        int, _option("--least-events", "Fewer new ones are not trained on.", min=1)
    ] = 1000,
    judged_share: Annotated[
        float, _option("--judged-share", "Part of the new events that judge.", min=0.01, max=0.9)
    ] = 0.2,
    least_judged: Annotated[
        int, _option("--least-judged", "At least so many judge.", min=1)
    ] = 2000,
    margin: Annotated[
        float, _option("--margin", "A candidate may be so much worse, relatively.", min=0, max=1)
    ] = 0.05,
    trial_share: Annotated[
        float,
        _option(
            "--trial-share",
            "Share of the users who get a new model first, until the service has "
            "decided; 1: all of them at once, as with a new scoring always.",
            min=0.001,
            max=1,
        ),
    ] = 0.1,
    trial_timeout: Annotated[
        str, _duration("--trial-timeout", "What the service has not decided by then is taken back.")
    ] = "30d",
    settle_timeout: Annotated[
        str,
        _duration("--settle-timeout", "What not every process serves by then is taken back."),
    ] = "10m",
    look: Annotated[str, _duration("--look", "Between two looks at a trial.")] = "30s",
    warm_states: Annotated[
        bool, _option("--warm-states/--no-warm-states", "First compute a new model's states.")
    ] = False,
    items: Annotated[
        Path | None,
        _option("--items", "Item table that models learn from, too; read at each training."),
    ] = None,
    scratch_options: Annotated[
        str, _option("--scratch-options", "Options of `train` for training from nothing.")
    ] = "",
    keep: Annotated[int, _option("--keep", "Newest models that stay published.", min=1)] = 5,
    metrics_port: Annotated[
        int | None, _option("--metrics-port", "Port of the learner's own metrics.", max=65535)
    ] = None,
    command: Annotated[
        str, _option("--command", "What runs the parts.", hidden=True)
    ] = OWN_COMMAND,
) -> None:
    """Train on what was logged, judge, publish, watch, take back: for ever, or --once.

    Steps that are due: --scoring-every, --warm-every, --scratch-every; the largest wins, once
    there are --least-events new events. A candidate that is not worse on the newest events is
    trained on all of them, published into --models and put on trial in the service, which
    decides. Old models are removed. What was done stands in journal.jsonl beside the models.

    One learner works at a time; another one ends with status 5. One that was killed goes on
    where it was.
    """
    _check_variables(ctx)
    if ctx.invoked_subcommand is not None:
        return
    place = _Place.of(models, service, admin_key, redis, data_dir, namespace)
    chosen = LearnSettings(
        models=place.models_url,
        work=work.resolve(),
        incumbent=incumbent,
        schedule=_schedule(scoring_every, warm_every, scratch_every),
        every_s=_seconds("--every", every),
        least_events=least_events,
        judged_share=judged_share,
        least_judged=least_judged,
        margin=margin,
        trial_share=trial_share,
        trial_longest_s=_seconds("--trial-timeout", trial_timeout),
        settle_s=_seconds("--settle-timeout", settle_timeout),
        look_s=_seconds("--look", look),
        warm_states=warm_states,
        items=None if items is None else items.resolve(),
        scratch_options=tuple(shlex.split(scratch_options)),
        keep=keep,
    )
    logs.configure(place.settings.log_level, place.settings.log_format)
    if metrics_port is not None:
        start_http_server(metrics_port, place.settings.host, metrics.REGISTRY)
    with _one_line():
        done = asyncio.run(_learn(place, chosen, shlex.split(command), once))
    if not done:
        raise typer.Exit(1)


@learn.command()
def status(
    models: Models = None,
    redis: Redis = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    work: Work = WORK,
    scoring_every: ScoringEvery = SCORING_EVERY,
    warm_every: WarmEvery = WARM_EVERY,
    scratch_every: ScratchEvery = SCRATCH_EVERY,
    newest: Annotated[int, typer.Option(min=1, help="So many models.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the newest models, who learns, what is under way, and what is due next.

    What is under way is known on the learner's machine, by its --work.
    """
    place = _Place.of(models, SERVICE, None, redis, data_dir, namespace)
    schedule = _schedule(scoring_every, warm_every, scratch_every)
    with _one_line():
        found = asyncio.run(_status(place, work, schedule, newest))
    if as_json:
        say(json.dumps(dataclasses.asdict(found), indent=1), out)
    else:
        _show(found)


@learn.command()
def rollback(
    models: Models = None,
    service: Service = SERVICE,
    admin_key: AdminKey = None,
    to: Annotated[str | None, typer.Option(metavar="NAME", help="Go back to this model.")] = None,
) -> None:
    """End the learner's trial, or have everybody go back to the model before; a learner may run."""
    place = _Place.of(models, service, admin_key, None, None, None)
    with _one_line():
        say(asyncio.run(_roll_back(place, to)), out)


@dataclass(frozen=True)
class _Place:
    """What is learned from and published to. `service`: with a login, where one was given."""

    settings: Settings
    models_url: str
    models: ArtefactStore
    service: str
    admin_key: str | None

    @classmethod
    def of(
        cls, models: str | None, service: str, admin_key: str | None, redis: str | None,
        data_dir: Path | None, namespace: str | None,
    ) -> _Place:  # fmt: skip
        settings = chosen_settings(
            artefact=Path(), redis_url=redis, data_dir=data_dir, namespace=namespace
        )
        url = models or (None if settings.models_dir is None else str(settings.models_dir))
        if url is None:
            raise CommandError("--models is not given, nor TIM4REC_MODELS_DIR: say where")
        try:
            found = open_artefact_store(url)
        except ArtefactStoreError as error:
            raise CommandError(f"--models: {error}") from None
        asked = ServiceUrl.parse(service)
        base = httpx.URL(asked.base)
        if asked.login:
            base = base.copy_with(username=asked.login[0], password=asked.login[1])
        return cls(settings, url, found, str(base), admin_key or _first_key(settings))

    @property
    def journal(self) -> Journal:
        return open_journal(self.models_url, self.models)

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        require_data_dir(self.settings)
        async with opened(self.settings) as store:
            yield store

    def environment(self) -> dict[str, str]:
        """Of the commands: the store as it was given here, but on no command line."""
        found = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(LEARNER_PREFIX) and name not in _NOT_FOR_COMMANDS
        }
        if self.settings.redis is not None:
            store = {"TIM4REC_REDIS_URL": self.settings.redis}
        else:
            store = {"TIM4REC_DATA_DIR": str(self.settings.data_dir)}
        return found | store | {"TIM4REC_NAMESPACE": self.settings.namespace}


async def _learn(place: _Place, chosen: LearnSettings, command: list[str], once: bool) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with work_folder(chosen.work) as token:
        commands = Commands(command, place.environment(), chosen.work / "running.json")
        commands.end_left()
        async with place.store() as store, Admin(place.service, place.admin_key) as admin:
            lease = Lease(store, this_process(token), namespace=place.settings.namespace)
            journal = place.journal
            learner = Learner(
                chosen,
                Training(chosen, place.models, journal, commands),
                Serving(chosen, place.models, journal, admin, lease),
                admin,
                journal,
                lease,
                RoundFile(chosen.work / "round.json"),
            )
            try:
                return await learner.run(once=once)
            except asyncio.CancelledError:
                raise SystemExit(128 + signal.SIGTERM) from None


async def _status(place: _Place, work: Path, schedule: Schedule, newest: int) -> Status:
    async with place.store() as store:
        learner = await holder(store, place.settings.namespace)
    under_way = RoundFile(work / "round.json").read()
    return Status.of(place.journal.entries(), learner, under_way, schedule, newest)


async def _roll_back(place: _Place, to: str | None) -> str:
    async with Admin(place.service, place.admin_key) as admin:
        return await roll_back(admin, place.journal, to)


def _show(found: Status) -> None:
    say(f"learner: {found.holder or 'none is at work'}", out)
    if found.under_way is not None:
        going = found.under_way
        say(f"under way: {going.step}, begun {going.id}, now {going.stage}", out)
    if found.due:
        say("due: " + ", ".join(f"{step} {at}" for step, at in found.due.items()), out)
    if found.last is not None:
        why = f": {found.last.reason}" if found.last.reason else ""
        say(f"last: {found.last.at} {found.last.what} {found.last.model or ''}{why}", out)
    rows = [("model", "step", "until", "new events", "verdict", "state", "since")]
    for one in found.models:
        entry = one.entry
        events, verdict = f"{entry.events or 0:,}", entry.verdict or "-"
        until = entry.until or "-"
        rows.append((one.name, entry.step or "-", until, events, verdict, one.state, one.since))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # not cut to a terminal's width: `rollback --to` takes a name
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip(), out)


def _schedule(scoring: str, warm: str, scratch: str) -> Schedule:
    return Schedule(
        _seconds("--scoring-every", scoring),
        _seconds("--warm-every", warm),
        _seconds("--scratch-every", scratch),
    )


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None


def _first_key(settings: Settings) -> str | None:
    try:
        more = [] if settings.admin_keys_file is None else keys_in(settings.admin_keys_file)
    except (OSError, ValueError) as error:
        raise CommandError(f"TIM4REC_ADMIN_KEYS_FILE: {error}") from None
    return next(iter([*secrets(settings.admin_keys), *more]), None)


def _check_variables(ctx: typer.Context) -> None:
    """Raises CommandError: a variable of the environment is no option."""
    group: Any = ctx.command
    own = [*group.params, *(one for part in group.commands.values() for one in part.params)]
    known = {str(one.envvar) for one in own if one.envvar}
    for name in os.environ:
        if name.startswith(LEARNER_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "`tim4rec learn --help` lists all"
            raise CommandError(f"{name} is no option of the learner: {hint}")


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except LeaseHeld as error:
        raise CommandError(str(error), ANOTHER) from None
    except (StoreError, AdminError, ArtefactStoreError, RollbackError) as error:
        raise CommandError(str(error)) from None

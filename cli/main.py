"""The command `tim4rec`: a group whose commands are imported only when they are used.

`tim4rec --help` and `tim4rec data` therefore start without torch, which takes seconds.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from cli.console import errors_without_traceback, out, say

# Threads that spin while they wait take the cores of those that work (a training step beside
# another program: 0.86 s, and 0.16 s without). Read by OpenMP when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_UsageError: Any = typer.BadParameter.__base__
_WITH_LOGIN = re.compile(r"[^\s(]*@")


class _Command(NamedTuple):
    module: str
    function: str
    summary: str


COMMANDS = {
    "data": _Command("cli.data", "data", "Get a public data set: an interaction log, titles."),
    "check": _Command("cli.check", "check", "Say what files hold, before training on them."),
    "train": _Command("cli.train", "train", "Train a model on an interaction log."),
    "evaluate": _Command("cli.evaluate", "evaluate", "Measure a model on a log, in three modes."),
    "judge": _Command(
        "cli.judge", "judge", "Say whether a new model is better than the one that is served."
    ),
    "serve": _Command("cli.serve", "serve", "Serve a trained model over HTTP."),
    "settings": _Command("cli.settings", "settings", "Show all settings of the service."),
    "health": _Command("cli.health", "health", "Ask a service whether it is ready."),
    "replay": _Command("cli.replay", "replay", "Send a log to a running service."),
    "import-log": _Command("cli.records", "import_log", "Write a log straight into the store."),
    "export-log": _Command("cli.export", "export_log", "Write the store's records as Parquet."),
    "backup": _Command("cli.backup", "backup", "Write all that the store keeps into a folder."),
    "restore": _Command("cli.backup", "restore", "Make an empty store what a backup holds."),
    "import-items": _Command("cli.items", "import_items", "Write items into the catalogue."),
    "warm": _Command("cli.records", "warm", "Compute a model's snapshots of all records."),
    "live": _Command("cli.evidence", "live", "Make the live evidence anew from the log."),
    "on-ray": _Command("cli.distributed", "on_ray", "Run a command with --shard on Ray."),
    "models": _Command("cli.models", "models", "List, publish and fetch models for many machines."),
    "learn": _Command("cli.learn", "learn", "Learn from the log by itself: train, judge, publish."),
    "size": _Command("cli.size", "size", "Say what memory and traffic to expect."),
    "import-official": _Command(
        "cli.official", "import_official", "Turn a checkpoint of the official code into a model."
    ),
}


class _LazyGroup(TyperGroup):
    """Lists commands by their summaries; the one that is called is imported then."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else listed, rest

    def invoke(self, ctx: Any) -> Any:
        with errors_without_traceback(ctx.params["traceback"]):
            try:
                return super().invoke(ctx)
            except _UsageError as error:
                # It repeats arguments that were not expected: a password's rest after a blank.
                error.message = _WITH_LOGIN.sub("...@", error.message)
                raise


def _load(name: str) -> Any:
    command = COMMANDS[name]
    loaded = getattr(import_module(command.module), command.function)
    if isinstance(loaded, typer.Typer):
        return typer.main.get_command(loaded)
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    single.command(name)(loaded)
    return typer.main.get_command(single)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"tim4rec {version('tim4rec')}", out)
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def tim4rec(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from.")
    ] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Online recommendation on TiM4Rec: a log of interactions in, live recommendations out.

    The usual order: data (or a log of your own), train, evaluate, serve.
    `tim4rec COMMAND --help` says all about one command.
    """


def _list_command() -> None:
    """Never runs: it gives the group a name to list, and `resolve_command` loads the real one."""


for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.summary)(_list_command)


if __name__ == "__main__":
    app()

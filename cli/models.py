"""`tim4rec models`: the artefacts in a folder or an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.artefacts import cache
from cli.console import out, say
from model.artefact_store import ModelNameError, open_artefact_store

models = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

Place = Annotated[
    str,
    typer.Argument(
        metavar="PLACE",
        help="A folder of artefacts, or a URL as s3://BUCKET/PREFIX; what TIM4REC_MODELS_DIR is.",
    ),
]
Name = Annotated[str, typer.Argument(help="Of the artefact there.")]


@models.callback()
def _models() -> None:
    """The artefacts that many machines take their models from, in a folder or an object store.

    Credentials of an object store come from the environment, as its own library reads them.
    """


@models.command("list")
def list_models(place: Place) -> None:
    """List the newest artefacts and their editions, newest first; nothing of them is checked."""
    for name, edition in open_artefact_store(place).names().items():
        say(f"{name}  {edition}", out)


@models.command()
def publish(
    place: Place,
    folder: Annotated[Path, typer.Argument(help="The artefact, as `tim4rec train` wrote it.")],
    name: Annotated[
        str | None, typer.Argument(help="What it is called there.", show_default="the folder's")
    ] = None,
) -> None:
    """Put an artefact there. Services see it all at once; the same one again is fine, and another
    one of the same name is refused."""
    store, name = open_artefact_store(place), name or folder.resolve().name
    store.publish(folder, name)
    say(f"{store.url}: {name}", out)


@models.command()
def fetch(
    place: Place,
    name: Name,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where downloads are kept, as DIR/EDITION/NAME.",
            show_default="models in TIM4REC_DATA_DIR or state",
        ),
    ] = None,
) -> None:
    """Download an artefact, check it by its hashes, and say in which folder it is."""
    say(str(open_artefact_store(place).fetch(name, folder or cache())), out)


@models.command()
def remove(place: Place, name: Name) -> None:
    """Delete an artefact there. Services that have it in memory serve on."""
    store = open_artefact_store(place)
    if not store.remove(name):
        raise ModelNameError(f"there is no model {name!r} in {store.url}")

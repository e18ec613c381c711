"""The artefact that a command is given: a folder, or a URL in an object store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from model.artefact_store import local_artefact
from service.environment import variable
from service.settings import Settings

ArtefactPlace = Annotated[
    str,
    typer.Argument(
        metavar="ARTEFACT",
        help="A folder written by `tim4rec train`, or its URL in an object store, as "
        "s3://BUCKET/PREFIX/NAME.",
    ),
]


def fetched(artefact: str) -> Path:
    """The artefact's folder, downloaded into `models` in the data folder if it is a URL.

    Raises:
        ArtefactError, ArtefactStoreError
    """
    return local_artefact(artefact, cache())


def cache() -> Path:
    """Where commands without other settings keep what they download."""
    default = Settings.model_fields["data_dir"].default
    return Path(os.environ.get(variable("data_dir")) or default, "models")

"""The option `--shard` of commands that work on all users."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.console import CommandError
from service.store.shards import ALL, Shard

ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Only the users of part I of N, I from 0 to N-1: N jobs, one for each I, do all of "
        "it side by side.",
        show_default="all users",
    ),
]


def chosen_shard(text: str | None) -> Shard:
    """Raises CommandError where it is none."""
    try:
        return ALL if text is None else Shard.parse(text)
    except ValueError as error:
        raise CommandError(f"--shard: {error}") from None

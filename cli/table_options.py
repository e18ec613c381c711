"""The options of every command that reads a table: how it is written."""

from __future__ import annotations

from typing import Annotated

import typer

Columns = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=COLUMN,...",
        help="What columns are called in the file, such as user_id=customer_id,item_id=sku.",
        show_default="the names as they are",
        rich_help_panel="Files",
    ),
]
ItemColumns = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=COLUMN,...",
        help="The same of the item table, such as item_id=sku,title=name.",
        show_default="the names as they are",
        rich_help_panel="Files",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of text files, such as latin-1 or cp1252.",
        show_default="UTF-8, or UTF-16 where the bytes say so",
        rich_help_panel="Files",
    ),
]
TimeFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Of the times, such as '%d/%m/%Y %H:%M'; UTC unless it has %z.",
        show_default="ISO 8601, epoch numbers and dates as numbers",
        rich_help_panel="Files",
    ),
]
AnyTime = Annotated[
    bool,
    typer.Option(
        "--any-time",
        help="Take times before 1990, and those that are still to come.",
        rich_help_panel="Files",
    ),
]

"""The rows of a log that move a state, where its interactions have kinds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from cli.console import CommandError, say
from model.kinds import KindRules
from training.interactions import Log, read_log
from training.table_format import PLAIN, TableFormat
from training.tables import InputError, describe_bad_rows
from training.time_span import TimeSpan

Kinds = Annotated[
    str | None,
    typer.Option(
        "--kinds",
        metavar="RULES",
        help="Take only the rows of the log that are a step by these rules and its column `kind`, "
        "as TIM4REC_KINDS says them of the service.",
        show_default="all rows",
        rich_help_panel="Data",
    ),
]


def say_what_was_read(path: Path, log: Log) -> None:
    if log.bad_row_count:
        say(f"{path}: {log.bad_row_count} rows left out:")
        say(describe_bad_rows(log.bad_rows, log.bad_row_count))
    say(f"{path}: {len(log.frame):,} interactions, {TimeSpan.of(log.frame['time_ms'])}")
    for note in log.notes:
        say(f"{path}: {note}")


def read_steps(
    path: Path, rules: str | None, *, skip_bad_rows: bool, form: TableFormat = PLAIN
) -> Log:
    """`read_log`, without the rows that are no steps; `rules` None: all rows are.

    Raises:
        CommandError: `rules` are none.
        InputError: as `read_log` does, and where no row is a step.
    """
    if rules is None:
        return read_log(path, skip_bad_rows=skip_bad_rows, form=form)
    try:
        steps = KindRules.parse(rules).steps
    except ValueError as error:
        raise CommandError(f"--kinds: {error}") from None
    log = read_log(path, skip_bad_rows=skip_bad_rows, kinds=True, form=form)
    stepping = [kind for kind in log.frame["kind"].unique() if steps(kind)]
    kept = log.frame.filter(pl.col("kind").is_in(stepping, nulls_equal=True))
    if kept.is_empty():
        raise InputError(f"{path}: no row is a step by --kinds {rules}")
    note = f"{len(log.frame) - len(kept):,} of {len(log.frame):,} rows are no steps and left out"
    columns = kept.select("user_id", "item_id", "time_ms")
    return dataclasses.replace(log, frame=columns, notes=[*log.notes, note])

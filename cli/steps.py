"""The rows of a log that move a state, where its interactions have kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from cli.console import CommandError, say
from model.kinds import KindRules
from model.trained_kinds import agreed_kinds
from training.ids import Overlap, doubles
from training.interactions import Log, read_log
from training.table_files import is_export
from training.table_format import PLAIN, TableFormat
from training.tables import InputError, describe_bad_rows
from training.time_span import TimeSpan

LISTED = 20

Kinds = Annotated[
    str | None,
    typer.Option(
        "--kinds",
        envvar="TIM4REC_KINDS",
        metavar="RULES",
        help="Take only the rows of the log that are a step by these rules and its column `kind`. "
        "They become a part of the model, and are used wherever it is.",
        show_default="the model's; needed to train anew on several kinds",
        rich_help_panel="Data",
    ),
]


def say_what_was_read(path: Path, log: Log) -> None:
    if log.bad_row_count:
        say(f"{path}: {log.bad_row_count} rows left out:")
        say(describe_bad_rows(log.bad_rows, log.bad_row_count))
    users, items = (log.frame[name].n_unique() for name in ("user_id", "item_id"))
    say(
        f"{path}: {len(log.frame):,} interactions of {users:,} users with {items:,} items, "
        f"{TimeSpan.of(log.frame['time_ms'])}"
    )
    for note in (*log.notes, *(doubles(log.frame[name]) for name in ("item_id", "user_id"))):
        if note is not None:
            say(f"{path}: {note}")


def say_overlap(path: Path, log: Log, known: Sequence[str] | pl.Series, whose: Path) -> None:
    """Raises InputError unless some of the log's items are known there."""
    said = Overlap.of(log.frame["item_id"], known).require("the log's items", str(whose))
    if said is not None:
        say(f"{path}: {said}")


def chosen_kinds(
    told: str | None, trained: Mapping[str, KindRules | None] | None = None
) -> KindRules | None:
    """The rules of `--kinds`, or else those that models were trained by; None: nobody says any.

    Args:
        trained: by the model's folder.

    Raises:
        CommandError: `told` are no rules.
        KindsDiffer: a model was trained by rules of another meaning.
    """
    try:
        rules = None if told is None else KindRules.parse(told)
    except ValueError as error:
        raise CommandError(f"--kinds: {error}") from None
    fix = "leave --kinds and TIM4REC_KINDS out, or train a model anew by the other rules"
    return agreed_kinds(rules, trained or {}, fix)


def read_steps(
    path: Path, rules: KindRules | None, *, skip_bad_rows: bool, form: TableFormat = PLAIN
) -> Log:
    """`read_log`, without the rows that are no steps; `rules` None: all rows are, in a log of one
    kind or in an export, as in a service without rules.

    Raises:
        InputError: as `read_log` does, where no row is a step, and where a log of several kinds has
            no rules.
    """
    log = read_log(path, skip_bad_rows=skip_bad_rows, kinds=True, form=form)
    if rules is None:
        said = several_kinds(log.frame["kind"])
        if said is not None and not is_export(path):
            raise InputError(f"{path}: {said}")
        columns = log.frame.select("user_id", "item_id", "time_ms")
        return dataclasses.replace(log, frame=columns)
    kept = steps_of(log.frame, rules)
    if kept.is_empty():
        there = listed_kinds(log.frame["kind"])
        raise InputError(f"{path}: no row is a step by the rules {rules}; there are {there}")
    left_out = len(log.frame) - len(kept)
    note = f"{left_out:,} of {len(log.frame):,} rows are no steps by {rules} and left out"
    columns = kept.select("user_id", "item_id", "time_ms")
    return dataclasses.replace(log, frame=columns, notes=[*log.notes, note], kinds=rules)


def steps_of(frame: pl.DataFrame, rules: KindRules) -> pl.DataFrame:
    """The rows that are a step by the rules."""
    stepping = [kind for kind in frame["kind"].unique() if rules.steps(kind)]
    return frame.filter(pl.col("kind").is_in(stepping, nulls_equal=True))


def several_kinds(kinds: pl.Series) -> str | None:
    """What there is, and the rules that may be meant; None: all rows are alike."""
    rules = suggested_rules(kinds)
    if rules is None:
        return None
    return (
        f"its interactions are of several kinds ({listed_kinds(kinds)}): say what each is with "
        f"--kinds, such as '{rules}' to learn from {rules.partition(':')[0]} alone, or '*:step' to "
        "take all alike"
    )


def suggested_rules(kinds: pl.Series) -> str | None:
    """Rules by which the kind that there is most of is learned from; None: there is but one."""
    counts = kinds.value_counts(sort=True)
    if len(counts) < 2:
        return None
    most = next(kind for kind in counts["kind"] if kind is not None)
    return f"{most}:step,*:count"


def listed_kinds(kinds: pl.Series) -> str:
    """How many rows there are of each."""
    counts = kinds.value_counts(sort=True)
    first = [f"{kind or 'without'} {count:,}" for kind, count in counts.head(LISTED).iter_rows()]
    more = [f"{len(counts) - LISTED:,} more"] if len(counts) > LISTED else []
    return ", ".join([*first, *more])

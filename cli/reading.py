"""How the files that `make run` is given are read: said, or asked for at a terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

import polars as pl
import typer

from cli.console import CommandError, say
from cli.source import Source
from cli.steps import listed_kinds, suggested_rules
from model.kinds import KindRules
from training.interactions import log_pieces
from training.item_table import read_items
from training.table_files import is_export
from training.table_format import MissingColumns, TableFormat


@dataclass(frozen=True)
class Reading:
    """Options of the commands that read a log and an item table; None: not given."""

    columns: str | None = None
    item_columns: str | None = None
    kinds: str | None = None
    encoding: str | None = None
    time_format: str | None = None

    @property
    def of_log(self) -> list[str]:
        return _options(columns=self.columns, encoding=self.encoding, time_format=self.time_format)

    @property
    def of_items(self) -> list[str]:
        return _options(columns=self.item_columns, encoding=self.encoding)

    @property
    def of_training(self) -> list[str]:
        return [*self.of_log, *_options(item_columns=self.item_columns, kinds=self.kinds)]

    def filled(self, source: Source) -> tuple[Self, str]:
        """With what was not said and is needed, if somebody at the terminal agrees; and a user of
        the log who took a step.

        Raises:
            CommandError: it is not agreed to; one line, with what to type.
            InputError: a file can't be read.
        """
        missing = _Missing()
        reading = self
        try:
            next(log_pieces(source.log, form=reading._log_form))
        except MissingColumns as error:
            reading = replace(reading, columns=missing.columns("COLUMNS", error))
        if source.items is not None:
            try:
                read_items(source.items, form=reading._item_form)
            except MissingColumns as error:
                near = missing.columns("ITEM_COLUMNS", error)
                reading = replace(reading, item_columns=near)
                read_items(source.items, form=reading._item_form)
        kinds, users = _kinds(source, reading._log_form)
        rules = suggested_rules(kinds)
        if reading.kinds is None and rules is not None and not is_export(source.log):
            what = f"{source.log}: its interactions are of several kinds ({listed_kinds(kinds)})"
            reading = replace(reading, kinds=missing.note("KINDS", what, rules))
        missing.require_agreement(source, reading)
        steps = KindRules.parse(reading.kinds or "").steps
        user = next((user for kind, user in users.items() if steps(kind)), None)
        if user is None:
            raise CommandError(
                f"{source.log}: no row is a step by KINDS={reading.kinds}; there are "
                f"{listed_kinds(kinds)}"
            )
        return reading, user

    @property
    def _log_form(self) -> TableFormat:
        return TableFormat.parse(self.columns, self.encoding, self.time_format)

    @property
    def _item_form(self) -> TableFormat:
        return TableFormat.parse(self.item_columns, self.encoding)


def _options(**values: str | None) -> list[str]:
    return [
        part
        for name, value in values.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", value)
    ]


class _Missing:
    """What was not said, and what may be meant, by the variable of make."""

    def __init__(self) -> None:
        self._whats: list[str] = []
        self._values: dict[str, str] = {}

    def columns(self, variable: str, error: MissingColumns) -> str:
        """Those that may be meant. Raises CommandError where none are."""
        if error.near is None:
            raise CommandError(f"{error.what}: say which is which by {variable}='item_id=NAME,...'")
        return self.note(variable, error.what, error.near.pairs)

    def note(self, variable: str, what: str, value: str) -> str:
        """The value."""
        self._whats.append(what)
        self._values[variable] = value
        return value

    def require_agreement(self, source: Source, reading: Reading) -> None:
        """Raises CommandError unless somebody agrees to the values."""
        if not self._whats:
            return
        if sys.stdin.isatty():
            for what in self._whats:
                say(what)
            if typer.confirm(f"Take {_variables(self._values)}?", default=True):
                return
        chosen = {name.upper(): value for name, value in asdict(reading).items() if value}
        command = f"make run {_variables({'DATA': str(source.given), **chosen})}"
        raise CommandError("\n".join([*self._whats, f"if it is meant so: {command}"]))


def _variables(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _kinds(source: Source, form: TableFormat) -> tuple[pl.Series, dict[str | None, str]]:
    """The kind of each row, and a user for each kind."""
    kinds: list[pl.Series] = []
    users: dict[str | None, str] = {}
    for piece in log_pieces(source.log, kinds=True, form=form):
        kinds.append(piece.frame["kind"])
        firsts = piece.frame.unique("kind", keep="first", maintain_order=True)
        users = dict(firsts.select("kind", "user_id").iter_rows()) | users
    return pl.concat(kinds), users

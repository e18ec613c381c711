"""What was not said of files, and what may be meant: offered, or asked for at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import typer

from cli.console import CommandError, say
from cli.reading import Reading, assigned
from cli.source import Source
from cli.steps import listed_kinds, suggested_rules
from model.kinds import KindRules
from training.interactions import log_pieces
from training.table_files import OLDER_ENCODING, is_export, read_pieces, wrongly_encoded
from training.table_format import MissingColumns, TableFormat
from training.tables import BadRow


class Proposal:
    """A reading that is completed as the files suggest."""

    def __init__(self, source: Source, given: Reading) -> None:
        self.source, self.reading = source, given
        self._whats: list[str] = []

    def complete(self) -> str:
        """A user of the log who took a step.

        Raises:
            CommandError: names are like none that are known, or no row is a step.
            InputError: a file can't be read.
        """
        log, items = self.source.log, self.source.items
        self._columns("columns", log, ["user_id", "item_id", "timestamp"])
        if items is not None:
            self._columns("item_columns", items, ["item_id"])
        rows, bad = self._read()
        wrong = wrongly_encoded(bad)
        if wrong is not None and self.reading.encoding is None:
            what, _, _ = wrong.partition(":")
            self._propose("encoding", OLDER_ENCODING, f"{self.source.given}: {what}")
            rows, bad = self._read()
        if bad and not self.reading.skip_bad_rows:
            what = f"{len(bad):,} rows can't be read: line {bad[0].line}: {bad[0].reason}"
            self._propose("skip_bad_rows", True, f"{self.source.given}: {what}")
        rules = suggested_rules(rows.kinds)
        if self.reading.kinds is None and rules is not None and not is_export(log):
            what = f"its interactions are of several kinds ({listed_kinds(rows.kinds)})"
            self._propose("kinds", rules, f"{log}: {what}")
        return self._user(rows)

    def require_agreement(self) -> None:
        """Raises CommandError unless somebody agrees to what was not said."""
        if not self._whats:
            return
        if sys.stdin.isatty():
            for what in self._whats:
                say(what)
            if typer.confirm(f"Take {assigned(self.reading.variables)}?", default=True):
                return
        chosen = {"DATA": str(self.source.given), **self.reading.variables}
        offer = f"if it is meant so: make run {assigned(chosen)}"
        raise CommandError("\n".join([*self._whats, offer]))

    def _columns(self, name: str, path: Path, required: Sequence[str]) -> None:
        form = self.reading.item_form if name == "item_columns" else self.reading.log_form
        try:
            next(read_pieces(path, required, [], form))
        except MissingColumns as error:
            if error.near is None:
                example = f"{name.upper()}='{required[0]}=NAME,...'"
                raise CommandError(f"{error.what}: say which is which by {example}") from None
            self._propose(name, error.near.pairs, error.what)

    def _read(self) -> tuple[_Rows, list[BadRow]]:
        """The log's rows, and what can't be read of both files."""
        rows, items = _Rows.of(self.source.log, self.reading.log_form), self.source.items
        of_items = [] if items is None else _bad_items(items, self.reading.item_form)
        return rows, [*rows.bad, *of_items]

    def _propose(self, name: str, value: str | bool, what: str) -> None:
        self._whats.append(what)
        self.reading = replace(self.reading, **{name: value})  # type: ignore[arg-type]

    def _user(self, rows: _Rows) -> str:
        steps = KindRules.parse(self.reading.kinds or "").steps
        for kind, user in rows.users.items():
            if steps(kind):
                return user
        raise CommandError(
            f"{self.source.log}: no row is a step by KINDS={self.reading.kinds}; there are "
            f"{listed_kinds(rows.kinds)}"
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Of a log: the kind of each row, a user for each kind, and what can't be read."""

    kinds: pl.Series
    users: dict[str | None, str]
    bad: list[BadRow]

    @classmethod
    def of(cls, path: Path, form: TableFormat) -> _Rows:
        kinds, bad = list[pl.Series](), list[BadRow]()
        users = dict[str | None, str]()
        for piece in log_pieces(path, kinds=True, form=form):
            kinds.append(piece.frame["kind"])
            bad += piece.bad
            firsts = piece.frame.unique("kind", keep="first", maintain_order=True)
            users = dict(firsts.select("kind", "user_id").iter_rows()) | users
        return cls(pl.concat(kinds), users, bad)


def _bad_items(path: Path, form: TableFormat) -> list[BadRow]:
    if path.suffix == ".jsonl":
        return []
    return [row for piece in read_pieces(path, ["item_id"], None, form) for row in piece.bad]

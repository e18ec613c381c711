"""`tim4rec check`: what files hold, and what `tim4rec train` would make of them, in seconds."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.checked_items import CheckedItems
from cli.checked_log import CheckedLog, TrainOptions
from cli.console import CommandError, out, say
from cli.steps import Kinds, chosen_kinds
from cli.table_head import TableHead
from cli.table_options import AnyTime, Columns, Encoding, ItemColumns, TimeFormat
from training.ids import Overlap
from training.recipe import REFITTED_CORE
from training.table_format import TableFormat
from training.tables import InputError


def check(
    files: Annotated[
        list[Path], typer.Argument(help="A log and, if there is one, a table of its items.")
    ],
    kinds: Kinds = None,
    core: Annotated[
        int, typer.Option(min=1, help="As of train.", rich_help_panel="Data")
    ] = REFITTED_CORE,
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", help="As of train.", rich_help_panel="Data"),
    ] = False,
    columns: Columns = None,
    item_columns: ItemColumns = None,
    encoding: Encoding = None,
    time_format: TimeFormat = None,
    any_time: AnyTime = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there too.")
    ] = None,
) -> None:
    """Say what files hold, what of it is suspicious, and how to train on it. Nothing is written.

    A log is told from an item table by its columns: it tells of users. Columns of other names are
    guessed, and given in the command at the end. Exit status 1: `tim4rec train` would refuse the
    files with the same options; its messages are shown.
    """
    log_form = TableFormat.parse(columns, encoding, time_format, any_time)
    item_form = TableFormat.parse(item_columns, encoding, option="--item-columns")
    heads = [TableHead.of(path, encoding) for path in files]
    logs = [head for head in heads if log_form.names_users(head.names)]
    tables = [head for head in heads if not log_form.names_users(head.names)]
    if len(logs) > 1 or len(tables) > 1:
        what, several = ("logs", logs) if len(logs) > 1 else ("item tables", tables)
        named = ", ".join(str(head.path) for head in several)
        raise CommandError(f"{named}: {len(several)} {what}: give one, or a folder with its parts")
    chosen = TrainOptions(chosen_kinds(kinds), core, skip_bad_rows)
    log = CheckedLog.read(logs[0], log_form, chosen) if logs else None
    table = CheckedItems.read(tables[0], item_form, skip_bad_rows) if tables else None
    checked = Checked(log, table)
    for line in checked.lines():
        say(line, out)
    if json_file is not None:
        text = json.dumps(checked.to_dict(), indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    for refusal in checked.refusals:
        say(f"train would refuse: {refusal}")
    command = checked.command()
    if command is not None:
        say(f"next: {command}", out)
    if checked.refusals:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in the files; None: there is no such file."""

    log: CheckedLog | None
    items: CheckedItems | None

    @property
    def refusals(self) -> list[str]:
        """Why `tim4rec train` would not begin, in its words."""
        overlap = self._overlap()
        return [
            *([] if self.log is None else self.log.refusals),
            *([] if self.items is None else self.items.refusals),
            *([] if isinstance(overlap, Overlap | None) else [overlap]),
        ]

    def lines(self) -> list[str]:
        lines = [
            *([] if self.log is None else self.log.lines()),
            *([] if self.items is None else self.items.lines()),
        ]
        overlap = self._overlap()
        if isinstance(overlap, Overlap) and self.items is not None:
            own = f"{overlap.shared:,} of the log's {overlap.ids:,} items are in {self.items.path}"
            near = overlap.require("the log's items", str(self.items.path))
            others = self.items.count - overlap.shared
            lines.append(f"{own}; {others:,} items of the table are not in the log")
            lines += [] if near is None else [near]
        missing = [
            text
            for here, text in (
                (self.log, "a log, to train on: users, items, times"),
                (self.items, "a table of the items: titles, categories, filters on attributes"),
            )
            if here is None
        ]
        return [*lines, *(f"not given: {text}" for text in missing)]

    def command(self) -> str | None:
        """What to type next; None: something is to be mended first."""
        if self.log is None or self.log.frame is None:
            return None
        words = ["tim4rec", "train", str(self.log.path), *self.log.options]
        if self.items is not None and self.items.ids is not None:
            words += ["--items", str(self.items.path), *self.items.options]
            if self.items.encoding is not None and "--encoding" not in words:
                words += ["--encoding", self.items.encoding]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        overlap = self._overlap()
        return {
            "log": None if self.log is None else self.log.to_dict(),
            "items": None if self.items is None else self.items.to_dict(),
            "overlap": asdict(overlap) if isinstance(overlap, Overlap) else None,
            "refusals": self.refusals,
            "next": self.command(),
        }

    def _overlap(self) -> Overlap | str | None:
        """Of the log's items with the table's; a text: why train would refuse it."""
        if self.log is None or self.items is None:
            return None
        if self.log.frame is None or self.items.ids is None:
            return None
        found = Overlap.of(self.log.frame["item_id"], self.items.ids)
        try:
            found.require("the log's items", str(self.items.path))
        except InputError as error:
            return f"{self.log.path}: {error}"
        return found

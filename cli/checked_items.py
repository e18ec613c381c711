"""An item table, as `tim4rec check` tells of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from cli.attribute_types import typed
from cli.table_head import TableHead
from training.item_table import NO_ATTRIBUTES, read_items
from training.table_files import OLDER_ENCODING, read_pieces, wrongly_encoded
from training.table_format import TableFormat
from training.tables import InputError


@dataclass(frozen=True, slots=True)
class Column:
    """said: its type, in words. missing: rows in which it says nothing. fault: the first value that
    `import-items` would refuse; None: there is none."""

    name: str
    said: str
    missing: int
    fault: str | None


@dataclass(frozen=True, slots=True)
class CheckedItems:
    """ids: of the items; None: the table can't be read, as `refusals` say. untitled: items without
    a title. encoding: the one that was guessed. options: of `tim4rec train`, those that the table
    needs."""

    path: Path
    ids: pl.Series | None
    untitled: int
    uncategorised: int
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    refusals: list[str]
    options: list[str]
    encoding: str | None = None

    @classmethod
    def read(cls, head: TableHead, form: TableFormat, skip_bad_rows: bool) -> CheckedItems:
        path, refusals, encoding = head.path, list[str](), None
        try:
            form.picked(path, head.names, ["item_id"], None)
        except InputError as error:
            refusals.append(str(error))
        near = form.completed(head.names, ["item_id"]) or form
        options = ["--item-columns", near.pairs] if near.columns else []
        try:
            pieces = list(read_pieces(path, ["item_id"], None, near))
            wrong = wrongly_encoded([row for piece in pieces for row in piece.bad])
            if wrong is not None and near.encoding is None:
                refusals.append(f"{path}: {wrong}")
                encoding = OLDER_ENCODING
                near = replace(near, encoding=encoding)
                pieces = list(read_pieces(path, ["item_id"], None, near))
            table = read_items(path, skip_bad_rows=skip_bad_rows, form=near)
        except InputError as error:
            refusals.append(str(error))
            return cls(path, None, 0, 0, (), (), refusals, options, encoding)
        frame = pl.concat([piece.frame for piece in pieces]).drop(*NO_ATTRIBUTES, strict=False)
        return cls(
            path,
            table["item_id"],
            table["title"].null_count(),
            int((table["categories"].list.len() == 0).sum()),
            tuple(map(_column, frame.iter_columns())),
            tuple(dict.fromkeys(note for piece in pieces for note in piece.notes)),
            refusals,
            options,
            encoding,
        )

    @property
    def count(self) -> int:
        return 0 if self.ids is None else len(self.ids)

    def lines(self) -> list[str]:
        if self.ids is None:
            return []
        lines = [
            f"{self.count:,} items, {self.untitled:,} without a title, {self.uncategorised:,} "
            "without a category",
            *self.notes,
        ]
        for column in self.columns:
            missing = f"{column.missing / max(1, self.count):.0%} missing"
            lines.append(f"attribute {column.name}: {column.said}, {missing}")
            if column.fault is not None:
                lines.append(f"import-items would refuse it: {column.fault}")
        return [f"{self.path}: {line}" for line in lines]

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "items": self.count,
            "untitled": self.untitled,
            "uncategorised": self.uncategorised,
            "attributes": [
                {"name": one.name, "type": one.said, "missing": one.missing, "fault": one.fault}
                for one in self.columns
            ],
            "notes": list(self.notes),
            "options": self.options,
        }


def _column(column: pl.Series) -> Column:
    if column.dtype != pl.String:
        return Column(column.name, str(column.dtype), column.null_count(), None)
    found = typed(column.fill_null(""), None)
    fault = found.faults[0][1] if found.faults else None
    return Column(column.name, found.said, found.values.null_count() - len(found.faults), fault)

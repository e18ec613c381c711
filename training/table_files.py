"""Tables as files: CSV or Parquet, told apart by content, read in pieces of bounded size; or as a
folder of such files, its parts.

Blanks around names and values are no part of them, a word for nothing is no id, and text that is
none in its encoding is a bad row. What `export-log` wrote is exactly what it says instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl

from model.log_folder import MANIFEST, WORKING
from model.plain_file import open_plain
from training.csv_file import CHUNK_ROWS, csv_pieces
from training.table_format import TableFormat
from training.tables import BadRow, InputError, Piece, split_off
from training.text_file import PARQUET, UNREADABLE, open_text

NULL_WORDS = (
    "NULL", "Null", "null", "NaN", "nan", "NAN", "None", "none", "NONE", "NA", "N/A", "n/a",
    "<NA>", "\\N",
)  # fmt: skip
"""What programs write where there is nothing."""
IDS = ("user_id", "item_id")
OLDER_ENCODING = "cp1252"
"""That of most files that are not UTF-8: Latin-1 with what Windows adds."""
_NOT_VALID = "is not valid"

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst", ".zip")
_PARTS = (".parquet", *(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in _PACKED))


def read_pieces(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] | None,
    form: TableFormat,
) -> Iterator[Piece]:
    """The named columns and `line`; CSV fields are strings, never null. At least one piece comes.

    The parts of a folder come in the order of their names, or as its export has noted them.

    Args:
        optional: columns that may be missing; None: all others that there are.

    Raises:
        InputError: a file that is no such table; a folder without parts, with parts of different
            columns, or with an export that is not complete.
    """
    if not path.is_dir():
        yield from map(_cleaned, _file_pieces(path, required, optional, form))
        return
    exact = is_export(path)
    columns: dict[str, pl.DataType] = {}
    before = 0
    for part in _parts(path):
        last = 0
        for raw in _file_pieces(part, required, optional, form):
            piece = raw if exact else _cleaned(raw)
            columns = columns or dict(piece.frame.schema)
            if piece.frame.schema != columns:
                raise InputError(
                    f"{part}: {_described(piece.frame.schema)}; the parts before it: "
                    f"{_described(columns)}. Give all parts the same columns of the same types"
                )
            last = max([last, *piece.frame["line"].tail(1), *(row.line for row in piece.bad)])
            named = [
                BadRow(before + row.line, f"{row.reason} ({part.name}, line {row.line})")
                for row in piece.bad
            ]
            yield Piece(piece.frame.with_columns(pl.col("line") + before), named, piece.notes)
        before += last


def wrongly_encoded(bad: Sequence[BadRow]) -> str | None:
    """The reason of the first row whose bytes are no text in the encoding."""
    return next((row.reason for row in bad if _NOT_VALID in row.reason), None)


def is_export(path: Path) -> bool:
    """Whether `export-log` wrote it."""
    return (path / WORKING).is_dir()


def _described(columns: Mapping[str, pl.DataType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items() if name != "line")


def _parts(folder: Path) -> list[Path]:
    """The files of a table in a folder. What is hidden, or named with an underscore, is none."""
    try:
        if is_export(folder):
            parts = json.loads((folder / MANIFEST).read_bytes())["parts"]
            return [folder / part["name"] for part in parts]
        entries = [one for one in sorted(folder.iterdir()) if not one.name.startswith((".", "_"))]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: the export is not complete: run the same export-log again, with all its "
            "shards"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder}: {error}") from error
    found = [one for one in entries if one.name.endswith(_PARTS)]
    if not found:
        there = ", ".join(repr(one.name) for one in entries[:3]) or "nothing"
        raise InputError(
            f"{folder}: is a folder without parts, *.parquet or *.csv (packed or not); in it: "
            f"{there}"
        )
    return found


def _file_pieces(
    path: Path, required: Sequence[str], optional: Sequence[str] | None, form: TableFormat
) -> Iterator[Piece]:
    try:
        with open_plain(path) as file:
            magic = file.read(len(PARQUET))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    pick = partial(form.picked, path, required=required, optional=optional)
    if magic == PARQUET:
        yield from _parquet_pieces(path, pick)
        return
    with open_text(path, form.encoding) as (text, encoding):
        name = encoding.upper().removesuffix("-SIG")
        notes = () if name == "UTF-8" else (f"read as {name}",)
        for piece in csv_pieces(path, text, pick):
            yield _readable(piece, name, notes)


def _parquet_pieces(path: Path, pick: Callable[[list[str]], dict[str, int]]) -> Iterator[Piece]:
    try:
        names = list(pl.read_parquet_schema(path))
        columns = {name: names[place] for name, place in pick(names).items()}
        table = pl.scan_parquet(path, glob=False).select(
            pl.col(there).alias(name) for name, there in columns.items()
        )
        schema = table.collect_schema()
        ids = [name for name in IDS if name in columns]
        for name in ids:
            kind = schema[name]
            if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
                raise InputError(f"{path}: {name} is {kind}; store it as integers or strings")
        first = 1
        batches = table.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True)
        for frame in chain([pl.DataFrame(schema=schema)], batches):
            line = pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("line")
            first += len(frame)
            yield Piece(frame.with_columns(pl.col(ids).cast(pl.String), line), [])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from error


def _readable(piece: Piece, encoding: str, notes: tuple[str, ...]) -> Piece:
    """Without the rows whose bytes are no text in the encoding."""
    reasons = [
        pl.when(pl.col(name).str.contains(UNREADABLE, literal=True)).then(
            pl.lit(f"{name} {_NOT_VALID} {encoding}: give the file's, such as --encoding latin-1")
        )
        for name in piece.frame.columns
        if name != "line"
    ]
    return Piece(*split_off(piece.frame, pl.coalesce(reasons), piece.bad), (*notes, *piece.notes))


def _cleaned(piece: Piece) -> Piece:
    """Values without the blanks around them, and without the rows whose ids are words for
    nothing."""
    texts = [name for name, kind in piece.frame.schema.items() if kind == pl.String]
    stripped = piece.frame.with_columns(pl.col(texts).str.strip_chars())
    before, after = (
        frame.select(pl.col(texts).str.len_bytes().sum()) for frame in (piece.frame, stripped)
    )
    blank = [name for name in texts if before[name].item() != after[name].item()]
    notes = (f"blanks around {', '.join(blank)} are no part of the values",) if blank else ()
    reasons = [
        pl.lit(None, pl.String),
        *(
            pl.when(pl.col(name) == "")
            .then(pl.lit(f"{name} is missing"))
            .when(pl.col(name).is_in(NULL_WORDS))
            .then(pl.format(f"{name} is '{{}}', a word for nothing", name))
            for name in IDS
            if name in stripped.columns
        ),
    ]
    return Piece(*split_off(stripped, pl.coalesce(reasons), piece.bad), (*piece.notes, *notes))

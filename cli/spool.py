"""A log of any size, sorted by user in files beside: memory holds a bounded number of its rows.

The log is read once, in pieces, into a spool. If that has more rows than memory may hold, it is
divided by a hash of the users into spools that are small enough. Each is then sorted and checked
by itself, and only when all are found good does the first row come out. A user's whole history
is always held at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from cli.console import say
from cli.rows import describe_timeless, leave_out_too_long, prepare
from model.kinds import HEAVIEST
from service.store.shards import Shard
from training.interactions import in_order, log_pieces
from training.table_files import is_export
from training.table_format import PLAIN, TableFormat
from training.tables import REPORTED_ROWS, BadRow, InputError, describe_bad_rows, nothing_in, refuse
from training.time_span import TimeSpan

_LENGTH = struct.Struct(">Q")
_FULLNESS = 0.8
"""How full spools are on average: their sizes differ, and none should be above the limit."""


class Spool:
    """Frames in a file, in the order in which they were added."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0

    def add(self, frame: pl.DataFrame) -> None:
        buffer = BytesIO()
        frame.write_ipc(buffer, compression="lz4")
        with self.path.open("ab") as file:
            file.write(_LENGTH.pack(buffer.tell()))
            file.write(buffer.getbuffer())
        self.rows += len(frame)

    def frames(self) -> Iterator[pl.DataFrame]:
        if self.rows:
            with self.path.open("rb") as file:
                while head := file.read(_LENGTH.size):
                    yield pl.read_ipc(BytesIO(file.read(*_LENGTH.unpack(head))))

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        self.rows = 0


class SpooledLog:
    """The rows of a log's users, of those that a shard holds, on their way to being sorted.

    `rows`: how many there are to import, known for good after `sort`. `kinds`: whether any has a
    kind.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        shard: Shard,
        rows_at_once: int,
        skip_bad_rows: bool,
        heaviest: float,
        form: TableFormat,
    ) -> None:
        self.path, self.skip_bad_rows, self._heaviest = path, skip_bad_rows, heaviest
        self._form = form
        self._folder, self._shard, self._rows_at_once = folder, shard, rows_at_once
        self._bad, self._bad_count = list[BadRow](), 0
        self._made = 0
        self.kinds = False
        self._spools = [self._new_spool()]

    @property
    def rows(self) -> int:
        return sum(spool.rows for spool in self._spools)

    def read(self) -> None:
        """Reads the log. Raises InputError as `read_log` does, but for what concerns the order of
        a user's rows."""
        (spool,) = self._spools
        empty = True
        notes, span = dict[str, None](), TimeSpan.of(pl.Series([], dtype=pl.Int64))
        for piece in log_pieces(
            self.path, kinds=True, given=True, heaviest=self._heaviest, form=self._form
        ):
            span += TimeSpan.of(piece.frame["time_ms"])
            notes |= dict.fromkeys(piece.notes)
            self._note(piece.bad)
            empty &= piece.frame.is_empty()
            self.kinds |= piece.frame["kind"].null_count() < len(piece.frame)
            held = self._held(piece.frame)
            if len(held):
                spool.add(held)
        self._refuse()
        if empty:
            raise nothing_in(self.path, "interactions", self._bad, self._bad_count)
        fault = None if self._form.any_time or is_export(self.path) else span.early_fault
        if fault is not None:  # what is to come is told by the store's clock
            raise InputError(f"{self.path}: {fault}")
        for note in (f"{span.rows:,} interactions, {span}", *notes):
            say(f"{self.path}: {note}")

    def sort(self, latest_ms: int, advance: Callable[[int], None]) -> tuple[pl.DataFrame, int]:
        """Sorts the rows and checks what concerns the order of a user's.

        Returns:
            Rows whose time is after `latest_ms`: the first of them, and how many there are.

        Raises:
            InputError: rows can't be placed, or have an id that the service would refuse.
        """
        self._divide()
        too_long, late, timeless = _Few(), _Few(), [0, 0]
        for place, spool in enumerate(self._spools):
            if not spool.rows:
                continue
            frame, _, bad = in_order(pl.concat(spool.frames()))
            self._note(bad)
            advance(spool.rows)
            spool.delete()
            prepared = prepare(frame)
            too_long.add(prepared.too_long)
            late.add(prepared.rows.filter(pl.col("time_ms") > latest_ms))
            timeless[0] += prepared.timeless_rows
            timeless[1] += prepared.timeless_users
            self._spools[place] = ordered = self._new_spool()
            if len(prepared.rows):
                ordered.add(prepared.rows)
        self._refuse()
        if self._bad_count:
            say(f"{self.path}: {self._bad_count} rows left out:")
            say(describe_bad_rows(self._bad, self._bad_count))
        if too_long.count:
            leave_out_too_long(self.path, too_long.rows, too_long.count, self.skip_bad_rows)
        if timeless[0]:
            say(describe_timeless(self.path, *timeless))
        return late.rows, late.count

    def frames(self) -> Iterator[pl.DataFrame]:
        """The columns that `read_rows` gives, and of GIVEN_COLUMNS those that the log has. A
        user is in one frame."""
        for spool in self._spools:
            yield from spool.frames()

    def _new_spool(self) -> Spool:
        self._made += 1
        return Spool(self._folder / str(self._made))

    def _held(self, piece: pl.DataFrame) -> pl.DataFrame:
        if self._shard.count == 1:
            return piece
        users = piece.get_column("user_id").unique()
        held = users.filter(
            pl.Series([self._shard.holds(user) for user in users], dtype=pl.Boolean)
        )
        return piece.join(held.to_frame(), on="user_id", how="semi", maintain_order="left")

    def _divide(self) -> None:
        (whole,) = self._spools
        if whole.rows <= self._rows_at_once:
            return
        count = int(whole.rows / (self._rows_at_once * _FULLNESS)) + 1
        self._spools = [self._new_spool() for _ in range(count)]
        for frame in whole.frames():
            spool = (pl.col("user_id").hash() % count).alias("spool")
            parts = frame.with_columns(spool).partition_by("spool", as_dict=True, include_key=False)
            for (place,), part in parts.items():
                self._spools[place].add(part)
        whole.delete()

    def _note(self, bad: list[BadRow]) -> None:
        self._bad_count += len(bad)
        self._bad = sorted([*self._bad, *bad])[:REPORTED_ROWS]

    def _refuse(self) -> None:
        if not self.skip_bad_rows:
            refuse(self.path, self._bad, self._bad_count)


class _Few:
    """The first of many rows, and how many there are."""

    def __init__(self) -> None:
        self.rows, self.count = pl.DataFrame(), 0

    def add(self, rows: pl.DataFrame) -> None:
        self.count += len(rows)
        if len(rows) and len(self.rows) < REPORTED_ROWS:
            self.rows = pl.concat([self.rows, rows], how="diagonal").head(REPORTED_ROWS)


@contextmanager
def spooled_log(
    path: Path,
    *,
    shard: Shard,
    rows_at_once: int,
    temp_dir: Path | None,
    skip_bad_rows: bool,
    heaviest: float = HEAVIEST,
    form: TableFormat = PLAIN,
) -> Iterator[SpooledLog]:
    """A log that has been read into a folder of its own, which goes at the end.

    Args:
        rows_at_once: most rows to hold in memory, but for a user who has more.
        temp_dir: where to make the folder; None: where the system keeps such.
        heaviest: a row that weighs more can't be read.
    """
    try:
        folder = TemporaryDirectory(prefix="tim4rec-import-", dir=temp_dir)
    except OSError as error:
        raise InputError(f"--temp-dir {temp_dir}: {error.strerror}") from None
    with folder as name:
        log = SpooledLog(path, Path(name), shard, rows_at_once, skip_bad_rows, heaviest, form)
        log.read()
        yield log

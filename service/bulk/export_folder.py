"""An export on disk: a part for each shard of the users, and what names them all.

    part-00017.parquet           the events of shard 17, by user, then version
    manifest.json                written last
    _export/begun.json           what all jobs that write into the folder agree on
    _export/marks-00017.parquet  how far each user's record had come
    _export/part-00017.json      written when shard 17 is done

Every file appears whole, by a rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

from model.log_folder import MANIFEST, WORKING

FORMAT = "tim4rec-log-1"
MARKS = {"user_id": pl.String, "version": pl.Int64, "uid": pl.Binary, "oldest": pl.Int64}


class ExportError(ValueError):
    """A folder that can't be exported to, or not be gone on from. One line, with the fix."""


@dataclass(frozen=True)
class Layout:
    """What an export is of. `began_ms`: the store's clock before anything was read. `since`: the
    folder of the export that it goes on from."""

    namespace: str
    began_ms: int
    shards: int
    since: str | None


@dataclass(frozen=True)
class Part:
    """The file of one shard. `newest_ms`: its newest effective time; None: it has no events.
    `damaged`: users whose record can't be read."""

    name: str
    rows: int
    users: int
    newest_ms: int | None
    sha256: str
    damaged: list[str]


def newest_ms(parts: Sequence[Part]) -> int | None:
    """The newest effective time in them, None if they have no events."""
    return max((one.newest_ms for one in parts if one.newest_ms is not None), default=None)


@dataclass(frozen=True)
class Manifest:
    """All of a complete export."""

    layout: Layout
    parts: list[Part]

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **asdict(self.layout),
            "users": sum(part.users for part in self.parts),
            "events": sum(part.rows for part in self.parts),
            "newest_ms": newest_ms(self.parts),
            "parts": [asdict(part) for part in self.parts],
        }


class ExportFolder:
    """Raises ExportError where what is in it can't be read, and OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self._working = path, path / WORKING

    @cached_property
    def complete(self) -> Manifest:
        """The manifest of a whole export. Raises ExportError where it is none."""
        found = _read_json(self.path / MANIFEST)
        if found is None or not self._working.is_dir():
            raise ExportError(f"{self.path}: is no complete export of export-log; give one")
        try:
            if found["format"] != FORMAT:
                raise ExportError(f"{self.path / MANIFEST}: its format is not {FORMAT}")
            layout = Layout(*(found[name] for name in Layout.__dataclass_fields__))
            return Manifest(layout, [Part(**part) for part in found["parts"]])
        except (KeyError, TypeError) as error:
            raise ExportError(f"{self.path / MANIFEST}: not as export-log writes it") from error

    def begun(self) -> Layout | None:
        """What was agreed on; None: nothing yet.

        Raises:
            ExportError: there is something else in the folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ExportError(f"{self.path}: is a file; give a folder")
        found = _read_json(self._working / "begun.json")
        if found is not None:
            return Layout(**found)
        if self.path.exists() and any(one.name != WORKING for one in self.path.iterdir()):
            raise ExportError(f"{self.path}: has other files in it; give a folder of its own")
        return None

    def begin(self, layout: Layout) -> Layout:
        """What all jobs keep to: this, unless another has just begun."""
        self._working.mkdir(parents=True, exist_ok=True)
        target, partial = self._working / "begun.json", self._partial()
        partial.write_text(json.dumps(asdict(layout)))
        try:
            os.link(partial, target)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
        begun = self.begun()
        assert begun is not None
        return begun

    def part(self, shard: int) -> Part | None:
        """The part of a shard, once it is done."""
        found = _read_json(self._working / f"part-{shard:05}.json")
        return None if found is None else Part(**found)

    def rows(self, shard: int) -> pl.DataFrame:
        """The events of a complete export's shard."""
        return _read_parquet(self.path / _part_name(shard))

    def marks(self, shard: int) -> pl.DataFrame:
        """The marks of a complete export's shard, with the columns MARKS."""
        return _read_parquet(self._working / f"marks-{shard:05}.parquet")

    def write(
        self, shard: int, rows: pl.DataFrame, marks: pl.DataFrame, damaged: list[str]
    ) -> Part:
        """Writes a shard's part and notes that it is done."""
        name = _part_name(shard)
        self._put(self.path / name, rows.write_parquet)
        with (self.path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        newest = rows["timestamp"].dt.epoch("ms").max()
        assert newest is None or isinstance(newest, int)
        return self._done(shard, Part(name, len(rows), len(marks), newest, digest, damaged), marks)

    def copy(self, shard: int, other: ExportFolder, damaged: list[str]) -> Part:
        """Takes a shard's part from a complete export as it is."""
        part = replace(other.complete.parts[shard], damaged=damaged)
        self._put(self.path / part.name, lambda to: shutil.copyfile(other.path / part.name, to))
        return self._done(shard, part, other.marks(shard))

    def finish(self, layout: Layout) -> bool:
        """Writes the manifest if all shards are done; whether they are."""
        parts = [self.part(shard) for shard in range(layout.shards)]
        done = [part for part in parts if part is not None]
        if len(done) < len(parts):
            return False
        manifest = Manifest(layout, done)
        text = json.dumps(manifest.as_json(), indent=1) + "\n"
        self._put(self.path / MANIFEST, lambda to: to.write_text(text))
        for partial in self._working.glob("*.partial"):  # of jobs that were killed
            partial.unlink(missing_ok=True)
        return True

    def _done(self, shard: int, part: Part, marks: pl.DataFrame) -> Part:
        self._put(self._working / f"marks-{shard:05}.parquet", marks.write_parquet)
        text = json.dumps(asdict(part))
        self._put(self._working / f"part-{shard:05}.json", lambda to: to.write_text(text))
        return part

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        partial = self._partial()
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)

    def _partial(self) -> Path:
        return self._working / f"{uuid4().hex}.partial"


def _part_name(shard: int) -> str:
    return f"part-{shard:05}.parquet"


def _read_json(path: Path) -> Any:
    """None: there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ExportError(f"{path}: not readable: {error}") from None


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ExportError(f"{path}: not readable as Parquet: {error}") from None

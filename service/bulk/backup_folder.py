"""A backup on disk: keys with all that is in them, and what names the parts.

    part-00000.parquet   a row a key: name, type, expires_ms, fields, values
    manifest.json        written last

What is being written is called OUT.partial; OUT appears whole, by a rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from model.folder import place_folder
from model.log_folder import MANIFEST
from service.bulk.stored_keys import StoredKey, words

FORMAT = "tim4rec-backup-1"
PART_BYTES = 2**25
"""About so much memory a part takes while it is written or read."""
_PAIR_BYTES = 128
"""Of a pair, beside its bytes."""
_ROWS = {
    "name": pl.Binary(),
    "type": pl.String(),
    "expires_ms": pl.Int64(),
    "fields": pl.List(pl.Binary),
    "values": pl.List(pl.Binary),
}
_LOCK = "lock"


class BackupError(ValueError):
    """A folder that no backup can be written to, or be read from. One line, with the fix."""


@dataclass(frozen=True)
class Part:
    name: str
    keys: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All of a backup.

    Attributes:
        began_ms: the store's clock before anything was read.
        keys: how many there are, by the first word of their name; "u" are the users' records.
        events: in all records.
    """

    namespace: str
    began_ms: int
    keys: dict[str, int]
    events: int
    parts: list[Part]

    @property
    def users(self) -> int:
        return self.keys.get("u", 0)


class BackupFolder:
    """Raises BackupError where what is in it is not a whole backup, and OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = json.loads((path / MANIFEST).read_bytes())
            if found["format"] != FORMAT:
                raise BackupError(f"{path / MANIFEST}: its format is not {FORMAT}")
            parts = [Part(**part) for part in found["parts"]]
            names = Manifest.__dataclass_fields__
            fields = {name: found[name] for name in names} | {"parts": parts}
        except (FileNotFoundError, NotADirectoryError):
            raise BackupError(f"{path}: is no whole backup; give the folder of one") from None
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BackupError(f"{path / MANIFEST}: not as `tim4rec backup` writes it") from error
        self.manifest = Manifest(**fields)

    def parts(self) -> Iterator[list[StoredKey]]:
        """What is in each part."""
        for part in self.manifest.parts:
            yield list(_unpacked(pl.read_parquet(self._content(part))))

    def require_sound(self) -> None:
        """Raises BackupError unless every part is as it was written."""
        for part in self.manifest.parts:
            self._content(part)

    def _content(self, part: Part) -> bytes:
        path = self.path / part.name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise BackupError(f"{path}: is missing; take another backup") from None
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise BackupError(f"{path}: is not what was written (sha256); take another backup")
        return data


class NewBackup:
    """A backup that is being written. Raises BackupError where that can't be, and OSError."""

    def __init__(self, partial: Path) -> None:
        self._partial = partial
        self._waiting, self._size = list[StoredKey](), 0
        self._parts, self._keys, self._events = list[Part](), Counter[str](), 0

    def add(self, keys: Sequence[StoredKey]) -> None:
        self._waiting += keys
        self._size += sum(_PAIR_BYTES + len(a) + len(b) for one in keys for a, b in one.pairs)
        if self._size >= PART_BYTES:
            self._write()

    def finish(self, namespace: str, began_ms: int) -> None:
        """Writes what is left, and the manifest."""
        self._write()
        manifest = Manifest(namespace, began_ms, dict(self._keys), self._events, self._parts)
        text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n"
        (self._partial / MANIFEST).write_text(text)

    def _write(self) -> None:
        if not self._waiting:
            return
        buffer, name = BytesIO(), f"part-{len(self._parts):05}.parquet"
        _packed(self._waiting).write_parquet(buffer)
        (self._partial / name).write_bytes(buffer.getbuffer())
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        self._parts.append(Part(name, len(self._waiting), digest))
        self._keys.update(words(self._waiting))
        self._events += sum(len(one.events) for one in self._waiting)
        self._waiting, self._size = [], 0


@contextmanager
def new_backup(path: Path) -> Iterator[NewBackup]:
    """Yields what is to be finished; then it gets its name. Nothing is left where that fails.

    Raises:
        BackupError: there is something of this name, or another process writes it.
    """
    partial = path.with_name(f"{path.name}.partial")
    _require_absent(path)
    partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = partial / _LOCK
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(
                f"{partial}: another backup is writing it; give another OUT"
            ) from None
        try:
            for left in partial.iterdir():  # of one that was killed
                if left != lock:
                    left.unlink()
            yield NewBackup(partial)
            lock.unlink()
            if not place_folder(partial, path):
                _require_absent(path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise BackupError(
                f"{path}: {error.strerror or error}; no backup was made: give a folder with room"
            ) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _require_absent(path: Path) -> None:
    if path.exists():
        raise BackupError(f"{path}: is there already; give a new folder for each backup")


def _packed(keys: Sequence[StoredKey]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {
        "name": [one.name for one in keys],
        "type": [one.type for one in keys],
        "expires_ms": [one.expires_ms for one in keys],
        "fields": [[field for field, _ in one.pairs] for one in keys],
        "values": [[value for _, value in one.pairs] for one in keys],
    }
    return pl.DataFrame(columns, schema=_ROWS)


def _unpacked(rows: pl.DataFrame) -> Iterator[StoredKey]:
    for name, kind, expires_ms, fields, values in rows.iter_rows():
        yield StoredKey(name, kind, expires_ms, list(zip(fields, values, strict=True)))

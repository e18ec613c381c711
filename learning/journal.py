"""What the learner did with each model, in the journal beside them (`model.journal`)."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from learning.round import Round
from model.artefact_store import ArtefactStore
from model.journal import FILE, Entry, Step, What, entries_of
from model.plain_file import read_plain
from model.times import iso, parse_time

MOST_BYTES = 1 << 28
"""Of the file: tens of years of a round an hour."""
_ATTEMPTS = 10

_ENDS: tuple[What, ...] = ("published", "refused", "given up")
"""After these a step counts as made."""


class Journal(Protocol):
    def entries(self) -> list[Entry]:
        """The oldest first."""

    def append(self, entry: Entry) -> None: ...


class FolderJournal:
    """In a folder. What was appended is on disk; several processes may append. Methods raise
    OSError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def entries(self) -> list[Entry]:
        try:
            return entries_of(read_plain(self._path, MOST_BYTES))
        except FileNotFoundError:
            return []

    def append(self, entry: Entry) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = _whole_lines(self._path)
            try:
                file.truncate(whole)
                file.seek(whole)
                line = entry.line
                if file.write(line) != len(line):
                    raise OSError(f"{self._path}: no room for a line")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise


class StoredJournal:
    """In an object store, which can't append: the file is replaced, and looked at afterwards, as
    another process may have replaced it too. Methods raise ArtefactStoreError."""

    def __init__(self, models: ArtefactStore) -> None:
        self._models = models

    def entries(self) -> list[Entry]:
        return entries_of(self._models.read(FILE) or b"")

    def append(self, entry: Entry) -> None:
        line = entry.line
        for _ in range(_ATTEMPTS):
            content = self._models.read(FILE) or b""
            if line in content:
                return
            self._models.write(FILE, content + line)


def open_journal(url: str, models: ArtefactStore) -> Journal:
    """The journal beside the models at a URL, or in a folder."""
    if "://" in url and not url.startswith("file://"):
        return StoredJournal(models)
    return FolderJournal(Path(url.removeprefix("file://")))


def about(going: Round, what: What, **more: Any) -> Entry:
    """About the model of a round, now."""
    return Entry(
        now(), what, round=going.id, model=going.name, step=going.step,
        parent=going.incumbent, edition=going.edition, identity=going.identity,
        until=going.until, events=going.events, verdict=going.verdict, **more,
    )  # fmt: skip


def now() -> str:
    return iso(round(1000 * time.time()))


def newest(entries: Sequence[Entry], *what: What, model: str | None = None) -> Entry | None:
    """The last entry that says one of these, of a model if one is given."""
    for entry in reversed(entries):
        if entry.what in what and model in (None, entry.model):
            return entry
    return None


def made(entries: Iterable[Entry]) -> dict[Step, float]:
    """When each step was made last, whatever came of it, epoch seconds."""
    found: dict[Step, float] = {}
    for entry in entries:
        if entry.step is not None and entry.what in _ENDS:
            found[entry.step] = parse_time(entry.at) / 1000
    return found


def rolled_back(entries: Sequence[Entry]) -> set[str]:
    """Editions that a person has taken back."""
    names = {entry.model for entry in entries if entry.what == "rolled back"}
    return {entry.edition for entry in entries if entry.edition and entry.model in names}


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last line that ends."""
    return read_plain(path, MOST_BYTES).rfind(b"\n") + 1

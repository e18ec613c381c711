"""What the learner did with each model: `journal.jsonl` beside the models, a JSON object a line.

A line that is not whole, as after a full disk, is no entry.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from learning.round import Round
from learning.schedule import Step
from model.artefact_store import ArtefactStore
from model.plain_file import read_plain
from model.times import iso, parse_time

FILE = "journal.jsonl"
MOST_BYTES = 1 << 28
"""Of the file: tens of years of a round an hour."""
_ATTEMPTS = 10

What = Literal[
    "published", "trial", "promoted", "taken back", "rolled back", "pruned", "refused", "failed",
    "given up",
]  # fmt: skip
"""On trial for a share of the users; promoted: for all of them; taken back by the learner or by the
trial; rolled back by a person; refused by the judge; failed, and tried again; given up."""

_ENDS: tuple[What, ...] = ("published", "refused", "given up")
"""After these a step counts as made."""


@dataclass(frozen=True)
class Entry:
    """Attributes:
    at: UTC, ISO 8601.
    round: what was under way.
    model: its name in the models folder.
    parent: name of the model it was trained from and judged against.
    until: of the newest event it was trained on.
    events: new ones since the parent's.
    figures: as the judge has them.
    seconds: of each part of the round.
    replaced: name of the model that everybody had before; None: what the service started with.
    """

    at: str
    what: What
    round: str | None = None
    model: str | None = None
    step: Step | None = None
    parent: str | None = None
    edition: str | None = None
    identity: str | None = None
    until: str | None = None
    events: int | None = None
    verdict: str | None = None
    figures: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] | None = None
    reason: str | None = None
    replaced: str | None = None

    @classmethod
    def of(cls, going: Round, what: What, **more: Any) -> Entry:
        """About the model of a round, now."""
        return cls(
            now(), what, round=going.id, model=going.name, step=going.step,
            parent=going.incumbent, edition=going.edition, identity=going.identity,
            until=going.until, events=going.events, verdict=going.verdict, **more,
        )  # fmt: skip


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
            return _read(read_plain(self._path, MOST_BYTES))
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
                line = _line(entry)
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
        return _read(self._models.read(FILE) or b"")

    def append(self, entry: Entry) -> None:
        line = _line(entry)
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


def _line(entry: Entry) -> bytes:
    said = {name: value for name, value in dataclasses.asdict(entry).items() if value is not None}
    return json.dumps(said).encode() + b"\n"


def _read(content: bytes) -> list[Entry]:
    known = {field.name for field in dataclasses.fields(Entry)}
    found = []
    for line in content.split(b"\n")[:-1]:
        try:
            said = json.loads(line)
            found.append(Entry(**{name: said[name] for name in said if name in known}))
        except (ValueError, TypeError):  # a line of a disk that was full
            continue
    return found

"""The data that `make run` serves: a log, its items, and where model and interactions go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cli.console import CommandError

LOG, ITEMS = "interactions", "items"
DEMO = Path("data", "ml-100k")
"""Where `make run` without DATA puts MovieLens-100K."""


@dataclass(frozen=True)
class Source:
    """given: what the caller named; log: a file, or a folder of parts; artefact: the folder of its
    model; state: that of the embedded store."""

    given: Path
    log: Path
    items: Path | None
    artefact: Path
    state: Path

    @classmethod
    def of(cls, data: Path) -> Self:
        """That of a log, or of a folder with `interactions.*` and perhaps `items.*`. Raises
        CommandError where there is no log, or more than one."""
        if not data.exists():
            raise CommandError(f"DATA={data}: no such file or folder")
        log: Path | None = data
        if data.is_dir() and not _is_parts(data):
            log = _called(data, LOG)
        if log is None:
            raise CommandError(f"DATA={data}: no {LOG}.* in that folder; {_there(data)}")
        name = log.name.split(".")[0]
        if name == LOG:
            name = log.resolve().parent.name
        name = name or "data"
        items = _called(log.parent, ITEMS)
        return cls(data, log, items, Path("artefacts", name), Path(f"state-{name}"))

    @property
    def files(self) -> list[Path]:
        """All that is read, parts included."""
        tables = [self.log] if self.items is None else [self.log, self.items]
        return [
            path
            for table in tables
            for path in (sorted(table.iterdir()) if table.is_dir() else [table])
        ]


def _called(folder: Path, name: str) -> Path | None:
    """What is called so, whatever its ending. Raises CommandError where two are."""
    found = sorted(path for path in folder.iterdir() if path.name.split(".")[0] == name)
    if len(found) > 1:
        both = " and ".join(path.name for path in found[:2])
        raise CommandError(f"DATA={folder}: {both}: leave one of them there")
    return found[0] if found else None


def _is_parts(folder: Path) -> bool:
    """Whether it is a log as such: Spark's, or an export."""
    return any(path.name.startswith("part-") for path in folder.iterdir())


def _there(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "it is empty"
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"it has {listed}: rename the log to {LOG}.csv or so, and a table of items to {ITEMS}.csv"
    )

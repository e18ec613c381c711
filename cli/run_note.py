"""What `make run` has done for a log, so that it goes on there: a file beside the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from cli.console import CommandError
from cli.reading import Reading
from cli.source import Source
from model.artefact import CONFIG


@dataclass(frozen=True)
class RunNote:
    """log: what the model is of; reading: how its files are read; files: size and time of change
    of each file as it was trained on; user: one of the log's; loaded: whether histories and items
    are in the store."""

    log: str
    reading: Reading
    files: dict[str, list[int]]
    user: str
    loaded: bool = False

    @classmethod
    def of(cls, source: Source) -> Self | None:
        """None: nothing was done yet.

        Raises CommandError where the artefact is another log's, or the note can't be read.
        """
        path = _path(source)
        if not path.exists():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            found = cls(**{**values, "reading": Reading(**values["reading"])})
        except (ValueError, TypeError, LookupError) as error:
            raise CommandError(f"{path}: {error}: delete it and {source.artefact}") from None
        log = str(source.log.resolve())
        if found.log != log and source.artefact.exists():
            raise CommandError(
                f"{source.artefact} is the model of {found.log}, not of {log}: rename the log's "
                f"folder or delete {source.artefact}"
            )
        return found if found.log == log else None

    @classmethod
    def new(cls, source: Source, reading: Reading, user: str) -> Self:
        return cls(str(source.log.resolve()), reading, _stamps(source), user)

    def changed(self, source: Source) -> list[Path]:
        """The files that are not as they were trained on, and newer than the model."""
        now, trained = _stamps(source), (source.artefact / CONFIG).stat().st_mtime_ns
        return [
            Path(name)
            for name, stamp in now.items()
            if stamp != self.files.get(name) and stamp[1] > trained
        ]

    def and_loaded(self) -> Self:
        return replace(self, loaded=True)

    def write(self, source: Source) -> None:
        path = _path(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        partial.write_text(f"{text}\n", encoding="utf-8")
        partial.replace(path)


def _path(source: Source) -> Path:
    return source.artefact.with_name(f"{source.artefact.name}.run.json")


def _stamps(source: Source) -> dict[str, list[int]]:
    found = {}
    for path in source.files:
        status = path.stat()
        found[str(path)] = [status.st_size, status.st_mtime_ns]
    return found

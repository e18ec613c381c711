"""Published artefacts: a folder of artefact folders, each known by its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from model.artefact import FILES, ArtefactError, claimed_edition
from model.folder import replace_folder
from model.plain_file import read_plain

MOST_BYTES = 1 << 28
"""Of a small file."""


class ArtefactStoreError(Exception):
    """The store can't do what was asked. One line."""


class ArtefactStore:
    """Methods raise ArtefactStoreError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, folder: Path, name: str) -> None:
        """Copies an artefact to a name; whoever reads it sees nothing of it or all. The same again
        is no error."""
        try:
            if (self._at(name)).exists():
                if claimed_edition(self._at(name)) != claimed_edition(folder):
                    raise ArtefactStoreError(f"{self.folder}: {name} is another model")
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".{name}.{os.getpid()}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for file in FILES:
                if (folder / file).exists():
                    shutil.copyfile(folder / file, partial / file)
            replace_folder(partial, self._at(name), FILES)
        except (OSError, ArtefactError) as error:
            raise ArtefactStoreError(f"{self.folder}: {error}") from None

    def names(self) -> dict[str, str]:
        """Names and the editions that the artefacts claim, the newest first."""
        found: dict[str, str] = {}
        if not self.folder.exists():
            return found
        entries = [one for one in self.folder.iterdir() if not one.name.startswith(".")]
        for entry in sorted(entries, key=lambda one: one.stat().st_mtime_ns, reverse=True):
            try:
                found[entry.name] = claimed_edition(entry)
            except ArtefactError:
                continue
        return found

    def fetch(self, name: str, cache: Path) -> Path:
        """A local folder with the artefact."""
        if not (self._at(name) / "config.json").exists():
            raise ArtefactStoreError(f"{self.folder}: there is no model {name!r}")
        return self._at(name)

    def remove(self, name: str) -> None:
        """Nothing is done where there is none."""
        gone = self.folder / f".{name}.removed"
        try:
            self._at(name).rename(gone)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ArtefactStoreError(f"{self.folder}: {error}") from None
        shutil.rmtree(gone, ignore_errors=True)

    def read(self, name: str) -> bytes | None:
        """A small file; None: there is none."""
        try:
            return read_plain(self._at(name), MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtefactStoreError(f"{self.folder}: {error}") from None

    def write(self, name: str, content: bytes) -> None:
        """Replaces a small file in one step."""
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(self._at(name))
        except OSError as error:
            raise ArtefactStoreError(f"{self.folder}: {error}") from None

    def _at(self, name: str) -> Path:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise ArtefactStoreError(f"{name!r} is no name of a model: give one without a slash")
        return self.folder / name


def open_artefact_store(url: str) -> ArtefactStore:
    """The store at a path or a `file://` URL. Raises ArtefactStoreError."""
    if "://" in url and not url.startswith("file://"):
        raise ArtefactStoreError(f"{url.partition('://')[0]}:// can't be opened: give a folder")
    return ArtefactStore(Path(url.removeprefix("file://")))

"""A folder of artefact folders, each known by its name."""

from __future__ import annotations

import heapq
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.artefact import CONFIG, FILES, ArtefactError, claimed_edition
from model.artefact_contents import Contents, file_sizes
from model.folder import place_folder, sync
from model.plain_file import open_plain, read_plain
from model.store_names import (
    LISTED,
    SMALL_BYTES,
    ArtefactStoreError,
    ModelNameError,
    is_hidden,
    require_name,
    require_new_name,
)


class FolderStore:
    """An ArtefactStore. A link may stand for an artefact, as `current` might. Nothing outside of
    the folder is ever read, whatever a name or a link says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        return str(self.folder)

    def publish(self, folder: Path, name: str) -> None:
        require_new_name(name)
        with self._faults(), self._beside(name) as partial:
            contents = Contents.of_folder(folder)
            (partial / CONFIG).write_bytes(contents.config)
            for file in contents.files(file_sizes(folder)):
                with (
                    open_plain(folder / file, within=folder) as source,
                    open(partial / file, "xb") as copy,
                ):
                    shutil.copyfileobj(source, copy)
            contents.require_in(partial)
            if place_folder(partial, self.folder / name):
                return
            if Contents.of_folder(self.find(name)).config != contents.config:
                raise ArtefactStoreError(f"{self.folder / name} is another model: use a new name")

    def names(self) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            with os.scandir(self.folder) as entries:
                seen = (entry for entry in entries if not is_hidden(entry.name))
                newest = heapq.nlargest(LISTED, map(_age_and_name, seen))
        except OSError:  # the folder is gone
            return found
        for _, name in newest:
            try:
                found[name] = claimed_edition(self.find(name))
            except (ModelNameError, ArtefactError):
                continue
        return found

    def fetch(self, name: str, cache: Path, edition: str | None = None) -> Path:
        return self.find(name)

    def find(self, name: str) -> Path:
        """The artefact's folder, links followed. Raises ModelNameError."""
        require_name(name)
        top = self.folder.resolve()
        try:
            found = (top / name).resolve(strict=True)
            outside = found.parent != top
            for file in FILES:
                if (found / file).exists():
                    outside |= not (found / file).resolve().is_relative_to(top)
        except (OSError, RuntimeError, ValueError):  # a loop of links; no name of a file at all
            raise ModelNameError(f"there is no folder {name!r} in {self.folder}") from None
        if outside:
            raise ModelNameError(f"{name!r} leads out of {self.folder}")
        return found

    def remove(self, name: str) -> bool:
        require_name(name)
        with self._faults(), self._beside(name) as gone:
            try:
                (self.folder / name).rename(gone / name)
            except FileNotFoundError:
                return False
        return True

    def read(self, name: str) -> bytes | None:
        require_name(name)
        with self._faults():
            try:
                return read_plain(self.folder / name, SMALL_BYTES, within=self.folder)
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        require_new_name(name)
        with self._faults(), self._beside(name) as partial:
            (partial / name).write_bytes(content)
            sync(partial / name)
            (partial / name).replace(self.folder / name)
            sync(self.folder)

    @contextmanager
    def _beside(self, name: str) -> Iterator[Path]:
        """A hidden folder in this one, deleted at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))
        path.chmod(0o755)  # not for the owner alone, if it becomes an artefact
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ArtefactStoreError(f"{error.filename or self.folder}: {reason}") from None


def _age_and_name(entry: os.DirEntry[str]) -> tuple[int, str]:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns, entry.name
    except OSError:  # gone meanwhile
        return 0, entry.name

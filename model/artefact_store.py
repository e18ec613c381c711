"""Where artefacts are kept for many machines: a folder that they share, or an object store.

Each artefact has a name. An object store is anything that fsspec knows by a URL; its credentials
come from the environment, as its own library reads them, and never from the URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from model.folder_store import FolderStore
from model.object_store import ObjectStore
from model.store_names import ArtefactStoreError, ModelNameError

__all__ = [
    "ArtefactStore",
    "ArtefactStoreError",
    "ModelNameError",
    "is_url",
    "local_artefact",
    "open_artefact_store",
]


class ArtefactStore(Protocol):
    """Artefacts by name, and small files beside them.

    Methods raise ArtefactStoreError: the store does not answer, or refuses. A name without a slash
    leads to nothing outside of it; any other one is a ModelNameError.
    """

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        ...

    def publish(self, folder: Path, name: str) -> None:
        """Puts an artefact there, for readers all at once. The same one again is fine.

        Raises:
            ArtefactError: the folder is not one, or is damaged.
            ArtefactStoreError: another one has this name.
        """
        ...

    def names(self) -> dict[str, str]:
        """Names and claimed editions of the newest artefacts, 500 at most, newest first; nothing
        of them is checked."""
        ...

    def fetch(self, name: str, cache: Path, edition: str | None = None) -> Path:
        """A local folder with the artefact: the store's own, or one in `cache`, downloaded and
        checked by its hashes unless it is there already.

        Args:
            edition: the one that is looked for: if `cache` has it, the store is not asked.

        Raises:
            ModelNameError: there is none of this name.
            ArtefactError: it is damaged, or too large for what it says it is.
        """
        ...

    def remove(self, name: str) -> bool:
        """Deletes an artefact, for readers all at once; False: there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file's content; None: there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file; readers have the old content or the new one."""
        ...


def open_artefact_store(url: str | Path) -> ArtefactStore:
    """A path or file:// is a folder; other URLs are fsspec's: s3://bucket/prefix, gs://, ...

    Raises:
        ArtefactStoreError: it can't be read as a URL, or its library is not installed.
    """
    text = str(url)
    if is_url(text) and not text.startswith("file://"):
        return ObjectStore(text)
    return FolderStore(_path(text))


def local_artefact(artefact: str | Path, cache: Path) -> Path:
    """A local folder with the artefact that a path or a URL (of its store, and its name) names.

    Raises:
        ArtefactError, ArtefactStoreError: as `ArtefactStore.fetch`.
    """
    text = str(artefact)
    if not is_url(text) or text.startswith("file://"):
        return _path(text)
    place, _, name = text.rstrip("/").rpartition("/")
    if not is_url(place) or place.endswith("/"):
        raise ArtefactStoreError("an artefact's URL ends in its name, as s3://BUCKET/MODELS/NAME")
    return open_artefact_store(place).fetch(name, cache)


def is_url(text: str) -> bool:
    """Whether it is a URL, and no path."""
    return "://" in text


def _path(text: str) -> Path:
    return Path(unquote(text.removeprefix("file://")) if text.startswith("file://") else text)

"""The one place that models may be taken from while the service runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from model import artefact_cache
from model.artefact_store import open_artefact_store
from model.journal import FILE, Entry, entries_of
from model.object_store import ObjectStore


class ModelFolder:
    """A folder of artefacts or an object store of them, and a folder for what comes from that.

    Nothing outside of it is ever read, whatever a name or a link says. Its methods may take as
    long as the object store does: they are called in a thread.
    """

    def __init__(self, place: str, cache: Path) -> None:
        self._store, self._cache = open_artefact_store(place), cache

    def find(self, name: str, edition: str | None = None) -> Path:
        """A local folder with the artefact.

        Args:
            edition: the one looked for: where it was fetched before, no store is asked.

        Raises:
            ModelNameError: there is none of this name.
            ArtefactError: it is damaged.
            ArtefactStoreError: the object store does not answer.
        """
        return self._store.fetch(name, self._cache, edition)

    def available(self) -> dict[str, str]:
        """Names and claimed editions of what looks like an artefact; nothing of it is checked.

        Raises:
            ArtefactStoreError: the object store does not answer.
        """
        return dict(sorted(self._store.names().items()))

    def journal(self, newest: int) -> list[Entry]:
        """What became of the models that a learner trained, the oldest of so many first.

        Raises:
            ArtefactStoreError: it can't be read.
        """
        return entries_of(self._store.read(FILE) or b"", newest)

    def prune(self, in_use: Collection[str]) -> None:
        """Deletes what was fetched, but for editions in use and the ones used last.

        Raises:
            OSError: it can't be deleted.
        """
        if isinstance(self._store, ObjectStore):
            artefact_cache.prune(self._cache, in_use)

"""Artefacts downloaded from an object store: CACHE/EDITION/NAME, whole or not there.

Processes that share a cache wait for each other's downloads. What an edition's folder was last
used at is its time of modification.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.folder import place_folder

NEWEST = 3
"""Editions that stay even if nobody uses them."""
_EDITION = re.compile(r"[0-9a-f]{16}(\+[0-9a-f]{8})?")
_LEFT = re.compile(rf"\.{_EDITION.pattern}\.(partial|removed)")


def cached(cache: Path, edition: str, name: str) -> Path | None:
    """The folder of an artefact that is there."""
    folder = cache / edition / name
    if not _EDITION.fullmatch(edition) or not folder.is_dir():
        return None
    with suppress(OSError):  # a cache that can only be read
        os.utime(folder.parent)
    return folder


def fill(cache: Path, edition: str, name: str, download: Callable[[Path], None]) -> Path:
    """The folder of an artefact, which `download` writes into an empty folder if it is not there.

    Raises:
        OSError: the cache can't be written to.
    """
    with _locked(cache):
        if (there := cached(cache, edition, name)) is not None:
            return there
        partial = cache / f".{edition}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            download(partial)
            (cache / edition).mkdir(exist_ok=True)
            place_folder(partial, cache / edition / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cache / edition / name


def prune(cache: Path, in_use: Collection[str], newest: int = NEWEST) -> None:
    """Deletes editions but the `newest` that were used last and those `in_use`, and what downloads
    that were killed have left.

    Raises:
        OSError: the cache can't be written to.
    """
    if not cache.is_dir():
        return
    with _locked(cache):
        editions = [entry for entry in cache.iterdir() if _EDITION.fullmatch(entry.name)]
        editions.sort(key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
        for folder in editions[newest:]:
            if folder.name not in in_use:
                folder.rename(cache / f".{folder.name}.removed")  # at once, for readers
        for entry in list(cache.iterdir()):
            if _LEFT.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

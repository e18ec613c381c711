"""The one folder that models may be taken from while the service runs."""

from __future__ import annotations

import heapq
import os
from pathlib import Path

from model.artefact import FILES, ArtefactError, claimed_edition

LISTED = 500
"""Most folders that are looked at for the list: the newest."""


class ModelNameError(ValueError):
    """A name that is none of the folder's artefacts. One line."""


class ModelFolder:
    """A folder of artefact folders, each known by its name.

    A link may stand for one of them, as `current` might. Nothing outside of the folder is ever
    read, whatever a name or a link says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Path:
        """The artefact's folder, links followed.

        Raises:
            ModelNameError
        """
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise ModelNameError(f"{name!r} is no name of a folder: give one without a slash")
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

    def available(self) -> dict[str, str]:
        """Names and claimed editions of what looks like an artefact; nothing of it is checked."""
        found: dict[str, str] = {}
        try:
            with os.scandir(self.folder) as entries:
                newest = heapq.nlargest(LISTED, map(_age_and_name, entries))
        except OSError:  # the folder is gone
            return found
        for name in sorted(name for _, name in newest):
            try:
                found[name] = claimed_edition(self.find(name))
            except (ModelNameError, ArtefactError):
                continue
        return found


def _age_and_name(entry: os.DirEntry[str]) -> tuple[int, str]:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns, entry.name
    except OSError:  # gone meanwhile
        return 0, entry.name

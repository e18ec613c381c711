"""The one folder that models may be taken from while the service runs."""

from __future__ import annotations

import json
from pathlib import Path

from model.artefact import CONFIG, FILES


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
        except (OSError, RuntimeError):  # a loop of links
            raise ModelNameError(f"there is no folder {name!r} in {self.folder}") from None
        if outside:
            raise ModelNameError(f"{name!r} leads out of {self.folder}")
        return found

    def available(self) -> dict[str, str]:
        """Names and identities of what looks like an artefact; nothing of it is checked."""
        found: dict[str, str] = {}
        for entry in sorted(self.folder.iterdir()):
            try:
                described = json.loads((self.find(entry.name) / CONFIG).read_text("utf-8"))
                found[entry.name] = str(described["identity"])
            except (ModelNameError, OSError, ValueError, KeyError, TypeError):
                continue
        return found

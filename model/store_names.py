"""Bounds and names of an artefact store, and what it says no with."""

from __future__ import annotations

LISTED = 500
"""Most artefacts that are looked at for a list: the newest."""
SMALL_BYTES = 1 << 26
"""Most of a file beside the artefacts."""


class ArtefactStoreError(ValueError):
    """A store of artefacts that does not do what it was asked to. One line, without secrets."""


class ModelNameError(ArtefactStoreError):
    """A name that is none of the store's artefacts. One line."""


def require_name(name: str) -> None:
    """Raises ModelNameError unless it names something right inside a store."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ModelNameError(f"{name!r} is no name of a folder: give one without a slash")


def require_new_name(name: str) -> None:
    """Raises ModelNameError unless something may be put into a store by this name."""
    require_name(name)
    if is_hidden(name) or len(name.encode()) > 200 or not name.isprintable():
        raise ModelNameError(f"{name!r} is no name to write to: give a short one, no dot first")


def is_hidden(name: str) -> bool:
    """Whether it is what is just being written or removed."""
    return name.startswith(".")

"""A folder that is its owner's alone."""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_OTHERS = 0o077
_BY_ITSELF = frozenset({"lost+found"})  # of a file system's root


class FolderError(OSError):
    """The folder can't be had, or not for its owner alone. One line that names it, with the fix."""


def private_folder(path: Path, own: tuple[str, ...] = ("",), *, close: bool = True) -> Path:
    """The folder, made where it is missing, and past its links.

    One that others may look into is closed to them, with what is its user's in it, and a warning
    says so.

    Args:
        own: how the names begin of what its user keeps in it, which is closed as well. Root does
            not close a folder that has none of it and other folders: it may be the system's.
        close: False: it is only looked whether it can be had.

    Raises:
        FolderError: it belongs to somebody else or to all (sticky), or can't be made, closed or
            written to.
    """
    try:
        _make(path)
        folder = path.resolve(strict=True)
        link, found = path.lstat(), folder.stat()
        names = os.listdir(folder) if stat.S_ISDIR(found.st_mode) else []
    except OSError as error:
        raise FolderError(
            f"{path}: {_why(path, error)}; give a local directory that can be written to"
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"{path}: is no folder; give a local directory")
    for owner, what in ((found.st_uid, "folder"), (link.st_uid, "link")):
        if owner != os.geteuid() and not (what == "link" and owner == 0):
            raise FolderError(
                f"{path}: the {what} belongs to {_name(owner)}, not to {_name(os.geteuid())}, who "
                "is to keep users' data there; give a folder of its own, one below it for instance"
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        why = "is on a read-only file system" if read_only else "can't be written to"
        raise FolderError(f"{path}: {why}; give a local directory that can be written to")
    names = [name for name in names if name not in _BY_ITSELF]
    ours = [name for name in names if name.startswith(own)]
    # Root could take away from everybody what the system needs.
    needed = os.geteuid() == 0 and not ours and any((folder / name).is_dir() for name in names)
    if found.st_mode & _OTHERS and (found.st_mode & stat.S_ISVTX or needed):
        raise FolderError(
            f"{path}: is open to other users and not for the store alone; give a folder of its "
            "own, one below it for instance"
        )
    if close:
        _close(path, folder, found.st_mode, [folder / name for name in ours])
    return folder


def _make(path: Path) -> None:
    missing = [part for part in (path, *path.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)


def _close(path: Path, folder: Path, mode: int, ours: list[Path]) -> None:
    opened = [entry for one in ours for entry in _open_below(one)]
    if not mode & _OTHERS and not opened:
        return
    try:
        for entry in (folder, *opened):
            with suppress(FileNotFoundError):  # a server that lives may have taken it away
                entry.chmod(stat.S_IMODE(entry.stat().st_mode) & ~_OTHERS)
    except OSError as error:
        raise FolderError(
            f"{path}: others can read it (mode {stat.S_IMODE(mode):o}), and it can't be closed to "
            f"them: {error.strerror}; chmod 700 it, or give another folder"
        ) from None
    logger.warning(
        "%s: other users could read it or files in it (mode %o); it is closed to them now",
        path,
        stat.S_IMODE(mode),
    )


def _open_below(entry: Path) -> Iterator[Path]:
    """It and all below it that others have rights to; nothing of somebody else's."""
    below = entry.rglob("*") if entry.is_dir() and not entry.is_symlink() else ()
    for place in (entry, *below):
        try:
            found = place.lstat()
        except FileNotFoundError:
            continue
        ours = found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode)
        if ours and stat.S_IMODE(found.st_mode) & _OTHERS:
            yield place


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink() and not path.exists():
        return "is a link to nothing"
    return error.strerror or str(error)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

"""Replacing a folder in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Collection
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h
_RENAME_SWAP = 2  # macOS, sys/stdio.h


def place_folder(new: Path, folder: Path) -> bool:
    """Gives `new` the name `folder`, on disk before the name changes; False: something has it."""
    for path in (*new.iterdir(), new):
        sync(path)
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    sync(folder.parent)
    return True


def replace_folder(new: Path, folder: Path, keep_others_than: Collection[str]) -> None:
    """Puts `new` in the place of `folder`, on disk before the names change.

    Where the system can't swap two names in one step, `folder` is missing for a moment, but
    never a mix of both.

    Args:
        new: beside `folder`. If `folder` was there, `new` is what is left of it afterwards.
        keep_others_than: names of files that belong to what is replaced; others move to the
            new folder.
    """
    for path in (*new.iterdir(), new):
        sync(path)
    if folder.exists():
        if not _swap(new, folder):
            old = new.with_name(f"{new.name}.old")
            folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            old.rename(new)
        for other in new.iterdir():
            if other.name not in keep_others_than:
                other.rename(folder / other.name)
    else:
        new.rename(folder)
    sync(folder.parent)


def _swap(a: Path, b: Path) -> bool:
    libc = ctypes.CDLL(None)
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        done: int = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin":
        done = libc.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    return done == 0


def sync(path: Path) -> None:
    """Waits until a file, or what is in a folder by name, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

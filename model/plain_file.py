"""Files that others may have put where one is read: opened without waiting, read to a bound."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Protocol

# A FIFO and some devices wait for somebody to open their other end.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip
_PIECE = 1 << 20


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def open_plain(path: Path, *, within: Path | None = None) -> BufferedReader:
    """Opens a regular file to read, at once whatever stands there. Links are followed.

    Args:
        within: a folder that links may not lead out of; None: they may lead anywhere.

    Raises:
        OSError: it can't be opened, or is a folder, a FIFO, a device or a socket.
    """
    name, extra = os.fspath(path), _AT_ONCE
    try:
        if within is not None:
            name, extra = os.path.realpath(path), _AT_ONCE | _NO_LINK
            if not Path(name).is_relative_to(os.path.realpath(within)):
                raise PermissionError(errno.EPERM, f"is a link that leads out of {within}")
        _require_plain(os.stat(name))  # before it is opened: a device may act on that
        descriptor = os.open(name, os.O_RDONLY | extra)
        try:
            _require_plain(os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def read_plain(path: Path, most: int, *, within: Path | None = None) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: as `open_plain`; or it has more, of which no more than that was read.
    """
    with open_plain(path, within=within) as file:
        size = os.fstat(file.fileno()).st_size
        content = None if size > most else read_bounded(file, most, size)
    if content is None:
        found = f"{size:,}" if size > most else "more"
        raise OSError(errno.EFBIG, f"has {found} bytes: at most {most:,} are read", os.fspath(path))
    return content


def read_bounded(stream: Readable, most: int, expected: int = 0) -> bytes | None:
    """All that a stream has; None: that is more than `most` bytes. About `expected` are read at
    once, and memory is taken as they come."""
    parts, left = list[bytes](), most + 1
    while left and (part := stream.read(min(left, max(expected, _PIECE)))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts) if left else None


def _require_plain(found: os.stat_result) -> None:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
    if kind == "a folder":
        raise IsADirectoryError(errno.EISDIR, "is a folder: give a file")
    if kind != "a file":
        raise OSError(errno.EINVAL, f"is {kind}: give a file")

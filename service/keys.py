"""Keys that callers show: from settings, and from a file that is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from model.plain_file import read_plain

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MOST_BYTES = 1 << 20
"""Of a file of keys: every one of them is compared with what a caller shows."""


class Keys:
    """The keys of one kind of caller.

    Args:
        given: keys that hold as long as the process lives.
        file: more of them, a line each; read again within `LOOK_EVERY_S` seconds of a change. One
            that can't be read any more, or has lost all its keys, changes nothing: half-written
            files neither open the service nor close it.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no key, or is no text.
    """

    def __init__(self, given: Iterable[str] = (), file: Path | None = None) -> None:
        self._given = tuple(map(_digest, given))
        self._file = file
        self._digests = self._given
        self._look_at = 0.0
        self._read: tuple[int, ...] | None = None
        self._failed = False
        if file is not None:
            self._read = _stamp(file)
            self._digests += tuple(map(_digest, keys_in(file)))
            self._look_at = time.monotonic() + LOOK_EVERY_S

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._digests)

    def have(self, shown: str | None) -> bool:
        """Whether what a caller has shown (the header's bytes as Latin-1) is one of the keys.

        All keys are compared, and digests in place of keys, so that the time tells neither which
        one was nearly right nor how long one is.
        """
        if self._file is not None and time.monotonic() >= self._look_at:
            self._look(self._file)
        digest = hashlib.sha256((shown or "").encode("latin-1")).digest()
        return any([hmac.compare_digest(digest, one) for one in self._digests])

    def _look(self, file: Path) -> None:
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            stamp = _stamp(file)
            if stamp == self._read:
                return
            self._digests = self._given + tuple(map(_digest, keys_in(file)))
        except (OSError, ValueError) as error:
            if not self._failed:  # said once, not every second
                logger.error("%s; the keys read before still hold", _why(file, error))
            self._failed = True
            return
        self._read, self._failed = stamp, False
        logger.info("keys of %s read again: %d", file, len(self._digests) - len(self._given))


def keys_in(file: Path) -> list[str]:
    """The keys of a file: its lines without the empty ones and those that begin with `#`.

    Raises:
        OSError: it can't be read.
        ValueError: it holds no key, or is no text.
    """
    text = read_plain(file, MOST_BYTES).decode("utf-8")
    lines = [line.strip() for line in text.split("\n")]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError("holds no key")
    return keys


def check(file: Path) -> None:
    """Raises ValueError, one line, when keys can't be read from a file."""
    try:
        keys_in(file)
    except (OSError, ValueError) as error:
        raise ValueError(_why(file, error)) from None


def _why(file: Path, error: Exception) -> str:
    # No part of the file: a line of it may be a key.
    if isinstance(error, UnicodeDecodeError):
        return f"{file}: is not UTF-8; give a key a line"
    if isinstance(error, OSError):
        return f"{file}: {error.strerror or 'cannot be read'}; give a file with a key a line"
    return f"{file}: {error}; give a key a line"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _stamp(file: Path) -> tuple[int, ...]:
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev

"""The learner's own folder: one learner works in it, and the next one there takes up its lease."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learning.lease import LeaseHeld

_TOKEN_BYTES = 64


@contextmanager
def work_folder(folder: Path) -> Iterator[str]:
    """Makes the folder and keeps others out of it meanwhile; the token that its learners have.

    Raises:
        LeaseHeld: another process works in it.
        OSError: it can't be made or written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # exports hold what users did
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LeaseHeld(f"another learner is at work in {folder}") from None
        token = file.read(_TOKEN_BYTES)
        if not token:
            token = secrets.token_hex(8)
            file.write(token)
            file.flush()
        yield token

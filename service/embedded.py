"""An embedded Valkey in a data directory, shared by every process that opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


class EmbeddedStoreError(RuntimeError):
    """The embedded server could not be started. One line, with the fix."""


class EmbeddedStore:
    """Context manager yielding the unix:// URL of the server in `data_dir`."""

    def __init__(
        self, data_dir: str | Path, *, fsync: Literal["always", "everysec"] = "always"
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> str:
        raise NotImplementedError

    def __exit__(self, *exc_info: object) -> None:
        raise NotImplementedError

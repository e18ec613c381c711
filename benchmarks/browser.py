"""A browser without a screen, for pictures and tests of the page."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The system's Chromium; None: there is none (Debian's package chromium has one)."""
    return next(filter(None, map(shutil.which, NAMES)), None)

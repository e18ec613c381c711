"""Says what Numba compiles while a process starts, which takes half a minute on a new machine.

What was compiled before is read from a cache, and nothing is said of that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from numba.core import event

logger = logging.getLogger(__name__)


@contextmanager
def logged() -> Iterator[None]:
    """Logs each function that is compiled meanwhile, before and after."""
    with event.install_listener("numba:compile", _Told()):
        yield


class _Told(event.Listener):  # type: ignore[misc]
    """Numba compiles one function at a time, and within it those that it calls."""

    def __init__(self) -> None:
        self._depth, self._began = 0, 0.0

    def on_start(self, event: event.Event) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._began = time.monotonic()
        function = event.data["dispatcher"]
        folder = function.stats.cache_path
        kept = f"once, it is kept in {folder}"
        if folder is None:
            kept = "at every start: name a folder that can be written to in NUMBA_CACHE_DIR"
        logger.info("compiling %s for this processor (%s) ...", function.py_func.__name__, kept)

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if not self._depth:
            name = event.data["dispatcher"].py_func.__name__
            logger.info("compiled %s in %.1f s", name, time.monotonic() - self._began)

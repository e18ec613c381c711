"""Commands that are killed in the middle of their work, however fast the machine is."""

from __future__ import annotations

import itertools
import os
import signal
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from tests.forked import Forked
from tests.waited import LONG_S


def killed(
    output: Path, *arguments: object, constant: str, value: int, method: str, call: int
) -> None:
    """Runs `tim4rec` with these arguments in a process that is killed as it calls a method for the
    `call`-th time.

    Args:
        output: a file for what it says.
        constant: a module's, by its full name, that has another value there.
    """
    prepare = partial(_prepared, constant, value, method, call)
    process = Forked(list(map(str, arguments)), os.environ, output, prepare)
    assert process.wait(LONG_S) == -signal.SIGKILL, output.read_text()


def _prepared(constant: str, value: int, method: str, call: int) -> None:
    module, _, name = constant.rpartition(".")
    setattr(resolve_name(module), name, value)
    place, _, name = method.rpartition(".")
    whole, calls = getattr(resolve_name(place), name), itertools.count(1)

    def counted(*given: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*given)

    setattr(resolve_name(place), name, counted)

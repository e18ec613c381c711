"""What every command prints through, and how an error becomes one line.

`out` writes results to standard output, `err` progress and errors to standard error, so that
a result can be piped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)


class CommandError(Exception):
    """A command can't go on; the message says why and what to do, without a traceback."""


def say(line: str, console: Console = err) -> None:
    """Print one line as it is: no markup, no colours, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def errors_without_traceback(traceback: bool = False) -> Iterator[None]:
    """End the command with exit code 1 and the message alone of an error its user can mend.

    These are `CommandError`, `ValueError` (bad input) and `OSError` (files, ports, network).
    Anything else is a fault of ours and keeps its traceback; `traceback` keeps all of them.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (CommandError, ValueError, OSError) as error:
        if traceback:
            raise
        say(f"error: {_message(error)}")
        raise typer.Exit(1) from None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__

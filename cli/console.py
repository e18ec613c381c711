"""What every command prints through, and how an error becomes one line.

`out` writes results to standard output, `err` progress and errors to standard error, so that
a result can be piped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

# With one slash where it was taken for a path; but for what we ask to be given.
_LOGIN = re.compile(r"(:/{1,2}+)(?!USER:PASSWORD@)\S*@")

out = Console()
err = Console(stderr=True)


class CommandError(Exception):
    """A command can't go on; the message says why and what to do, without a traceback.

    Attributes:
        status: the exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def say(line: str, console: Console = err) -> None:
    """Print one line as it is: no markup, no colours, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def say_renamed(old: str, new: str) -> None:
    """Say that what was given under its old name has another one."""
    say(f"{old} is now {new}; the old name works in this version only")


@contextmanager
def errors_without_traceback(traceback: bool = False) -> Iterator[None]:
    """End the command with the message alone of an error its user can mend, and exit code 1 or
    the error's own.

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
        raise typer.Exit(error.status if isinstance(error, CommandError) else 1) from None


def without_login(text: str) -> str:
    """A text without user and password of the URLs in it."""
    return _LOGIN.sub(r"\1", text)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return without_login(f"{error.filename}: {error.strerror}")
    return without_login(str(error)) or type(error).__name__

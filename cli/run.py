"""`make run`: data, training and serving in one go, each step only where it is still to be done.

    python -m cli.run [--port 8000] [--host 127.0.0.1] [--data LOG] [--device cpu]

The trained model is kept in `artefacts/NAME` (NAME is that of the log, or of its folder); delete
that folder to train anew.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, errors_without_traceback, say
from service.listeners import AddressError, bound

LOGS = ("interactions.csv.gz", "interactions.csv", "interactions.parquet")
ITEMS = ("items.csv.gz", "items.csv", "items.parquet")


@dataclass(frozen=True)
class Source:
    """What is trained on and where the model goes."""

    log: Path
    items: Path | None
    artefact: Path

    @classmethod
    def of(cls, data: Path | None) -> Source:
        """That of a log file or a folder with `interactions.*` and perhaps `items.*`; for
        None, MovieLens-100K. Raises CommandError where there is no log."""
        if data is None:
            folder = Path("data", "ml-100k")
            return cls(folder / LOGS[0], folder / ITEMS[0], Path("artefacts", folder.name))
        if data.is_dir():
            log = _first(data, LOGS)
            if log is None:
                raise CommandError(f"DATA={data}: no {', '.join(LOGS)} in that folder")
            name = data.resolve().name
        elif data.exists():
            log, name = data, data.name.split(".")[0]
            if log.name in LOGS:
                name = data.resolve().parent.name
        else:
            raise CommandError(f"DATA={data}: no such file or folder")
        return cls(log, _first(log.parent, ITEMS), Path("artefacts", name or "data"))

    @property
    def complete(self) -> bool:
        return self.log.exists() and self.items is not None and self.items.exists()

    @property
    def trained(self) -> bool:
        return (self.artefact / "config.json").exists()

    def claim(self) -> None:
        """Note which log the artefact is of. Raises CommandError if it is another log's."""
        note = self.artefact.with_name(f"{self.artefact.name}.source")
        log = str(self.log.resolve())
        if self.artefact.exists() and note.exists() and (other := note.read_text().strip()) != log:
            raise CommandError(
                f"{self.artefact} is the model of {other}, not of {log}: rename the log's folder "
                f"or delete {self.artefact}"
            )
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{log}\n")


def require_free_port(
    port: int, host: str = "127.0.0.1", another: str = "make run PORT={}"
) -> None:
    """Raise CommandError unless a server could listen there now. `another`: how to take another
    port."""
    if not 1 <= port <= 65535:
        raise CommandError(f"PORT={port} is no port: take one between 1 and 65535")
    try:
        _try(port, host)
    except AddressError as error:
        free = _free_port(port, host) if error.in_use else None
        hint = "" if free is None else f", for instance: {another.format(free)}"
        raise CommandError(f"{error}{hint}") from None


def _try(port: int, host: str) -> None:
    for listener in bound(host, port):
        listener.close()


def _free_port(port: int, host: str) -> int | None:
    for other in range(port + 1, min(port + 100, 65536)):
        with suppress(AddressError):
            _try(other, host)
            return other
    return None


def run(
    port: Annotated[int, typer.Option(help="Where the service listens.")] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="A log, or a folder with one; default: MovieLens-100K.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: chosen.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: TIM4REC_HOST or 127.0.0.1.")
    ] = None,
) -> None:
    """Get the data, train, serve: what was done before is kept."""
    with errors_without_traceback():
        at = host or os.environ.get("TIM4REC_HOST") or "127.0.0.1"
        require_free_port(port, at.strip("[]"))
        source = Source.of(data)
        source.claim()
        on_device = ["--device", device] if device else []
        if not source.trained:
            with subprocess.Popen([sys.executable, "-m", "cli.compile_ahead"]):
                if data is None and not source.complete:
                    _tim4rec("data", "ml-100k", "--out", str(source.log.parent))
                with_items = ["--items", str(source.items)] if source.items else []
                out = ["--out", str(source.artefact)]
                quick = ["--recipe", "quick"] if data is None else []
                _tim4rec("train", str(source.log), *with_items, *out, *quick, *on_device)
        at_host = ["--host", host] if host else []
        serve = _command("serve", str(source.artefact), "--port", str(port), *at_host, *on_device)
        os.execv(serve[0], serve)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _tim4rec(*arguments: str) -> None:
    code = subprocess.run(_command(*arguments)).returncode
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def _command(*arguments: str) -> list[str]:
    shown = shlex.join(["tim4rec", *arguments])
    say(f"$ {shown}")
    return [sys.executable, "-m", "cli.main", *arguments]


if __name__ == "__main__":
    typer.run(run)

"""`make run`: data, training and serving in one go, each step only where it is still to be done.

    python -m cli.run [--port 8000] [--host 127.0.0.1] [--data LOG] [--device cpu]

NAME is that of the log, or of its folder. The trained model is kept in `artefacts/NAME`, the
interactions in `state-NAME`; delete both to begin anew.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.console import CommandError, errors_without_traceback, say
from cli.ports import require_free_port
from cli.proposal import Proposal
from cli.reading import Reading
from cli.run_note import RunNote
from cli.serve import served_with
from cli.source import DEMO, ITEMS, LOG, Source
from model.artefact import CONFIG


def run(
    port: Annotated[int, typer.Option(help="Where the service listens.")] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="A log, or a folder with one; default: MovieLens-100K.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: chosen.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: TIM4REC_HOST or 127.0.0.1.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Of the log, such as user_id=customer_id,item_id=sku.")
    ] = None,
    item_columns: Annotated[
        str | None, typer.Option(help="Of the items, such as item_id=sku,title=name.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="What each kind is, such as purchase:step,*:count.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of both files, such as latin-1.")] = None,
    time_format: Annotated[str | None, typer.Option(help="Such as '%d/%m/%Y %H:%M'.")] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="As of train; default: full, or quick for MovieLens-100K.")
    ] = None,
) -> None:
    """Get the data, train, import, serve: what was done before is kept."""
    with errors_without_traceback():
        at = (host or os.environ.get("TIM4REC_HOST") or "127.0.0.1").strip("[]")
        require_free_port(port, at)
        recipe = recipe or ("quick" if data is None else "full")
        if data is None and not all((DEMO / f"{name}.csv.gz").exists() for name in (LOG, ITEMS)):
            _tim4rec("data", "ml-100k", "--out", str(DEMO))
        source = Source.of(data or DEMO)
        on_device = ["--device", device] if device else []
        given = Reading(columns, item_columns, kinds, encoding, time_format, skip_bad_rows)
        note = _prepared(source, given, ["--recipe", recipe, *on_device])
        if not note.loaded:
            _load(source, note.reading, on_device)
            note.and_loaded().write(source)
        _serve(source, note.user, port, host, device)


def _prepared(source: Source, given: Reading, options: list[str]) -> RunNote:
    """Trains a model, if there is none."""
    note = RunNote.of(source)
    if note is not None and (source.artefact / CONFIG).exists():
        _require_same(note, given, source)
        _say_what_changed(note, source)
        return note
    proposal = Proposal(source, given)
    user = proposal.complete()
    proposal.require_agreement()
    note = RunNote.new(source, proposal.reading, user)
    note.write(source)
    items = ["--items", str(source.items)] if source.items else []
    out = ["--out", str(source.artefact)]
    with subprocess.Popen([sys.executable, "-m", "cli.compile_ahead"]):
        _tim4rec("train", str(source.log), *note.reading.of_training, *items, *out, *options)
    return note


def _load(source: Source, reading: Reading, on_device: list[str]) -> None:
    state, model = ["--data-dir", str(source.state)], str(source.artefact)
    _tim4rec("import-log", str(source.log), "--artefact", model, *reading.of_log, *state)
    if source.items is not None:
        _tim4rec("import-items", str(source.items), *reading.of_items, *state)
    _tim4rec("warm", model, *state, *on_device)


def _require_same(note: RunNote, given: Reading, source: Source) -> None:
    for name, value in asdict(given).items():
        trained = getattr(note.reading, name)
        if value and value != trained:
            raise CommandError(
                f"{name.upper()}={value}: {source.artefact} was trained with {trained or 'none'}: "
                f"leave it out, or delete {source.artefact} and {source.state} to begin anew"
            )


def _say_what_changed(note: RunNote, source: Source) -> None:
    changed = note.changed(source)
    if not changed:
        return
    state = shlex.join(["--data-dir", str(source.state)])
    log, model = shlex.quote(str(source.log)), shlex.quote(str(source.artefact))
    listed = ", ".join(map(str, changed[:3])) + (", ..." if len(changed) > 3 else "")
    say(f"changed since the training: {listed}. What is served is as before. To take it in:")
    options = shlex.join(note.reading.of_log)
    say(f"  tim4rec import-log {log} --overlap {options} {state}")
    if source.items is not None:
        options = shlex.join(note.reading.of_items)
        say(f"  tim4rec import-items {shlex.quote(str(source.items))} {options} {state}")
    say(f"  tim4rec train {log} --from {model} --out {model} {shlex.join(note.reading.of_log)}")
    say(f"or delete {source.artefact} and {source.state}, and run this again")


def _serve(source: Source, user: str, port: int, host: str | None, device: str | None) -> None:
    chosen = {"host": host, "device": device}
    options = {"data_dir": str(source.state), "port": port}
    options |= {name: value for name, value in chosen.items() if value}
    shown = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    say(f"$ {shlex.join(['tim4rec', 'serve', str(source.artefact), *shown])}")
    served_with({"artefact": str(source.artefact), **options}, user)


def _tim4rec(*arguments: str) -> None:
    say(f"$ {shlex.join(['tim4rec', *arguments])}")
    code = subprocess.run([sys.executable, "-m", "cli.main", *arguments]).returncode
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    typer.run(run)

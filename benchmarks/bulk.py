"""Histories in bulk: `import-log`, `warm` and `export-log` beside posting the events one by one.

    python -m benchmarks.bulk artefacts/amazon-beauty --json runs/bulk.json

A log is drawn: histories of geometric lengths, items evenly from the model's, times in the past.
First its events go to a service process by POST /interactions in the order of their times, for
some seconds with one request in flight and with many; only the rate is kept of it. Then, into an
empty store, the commands `import-log`, `warm` and `export-log`, each a process whose whole life is
counted, starting included; `import-log` also with little memory, and `export-log` also from that
export on, when nothing has changed. `times` is how much faster than posting,
with one in flight / with many.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
import redis
import typer
from rich.table import Table

from benchmarks.http_load import Outcome, closed_loop, post
from benchmarks.running import service, set_fsync, store
from cli.console import CommandError, errors_without_traceback, out, say
from model.artefact import load_artefact

YEAR_MS = 365 * 86_400_000


@dataclass(frozen=True)
class Posting:
    """Events a second that the service took, with so many requests in flight."""

    in_flight: int
    events_s: float
    failed: int


@dataclass(frozen=True)
class Command:
    """A command from its start to its end; `peak_mib` is the process' most resident memory."""

    name: str
    seconds: float
    events_s: float
    users_s: float
    peak_mib: float


def write_log(path: Path, items: Sequence[str], users: int, mean_length: float) -> pl.DataFrame:
    """Draws a log and writes it as CSV in the order of time; returns its rows."""
    draw = random.Random(0)
    now_ms = int(time.time() * 1000) - 60_000
    rows = []
    for number in range(users):
        length = 1
        while draw.random() * mean_length > 1:
            length += 1
        user, times = f"user-{number}", draw.choices(range(now_ms - YEAR_MS, now_ms), k=length)
        rows += [(user, draw.choice(items), at) for at in times]
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    frame = pl.DataFrame(rows, schema, orient="row").sort("timestamp")
    frame.write_csv(path)
    return frame


def measure_posting(
    artefact: Path, log: pl.DataFrame, in_flight: Sequence[int], seconds: float, fsync: str
) -> list[Posting]:
    """Posts the log's rows to a service, in their order, for so long each."""
    rows = _requests(log)
    with store() as url:
        set_fsync(url, fsync)
        with service(artefact, url) as server:
            found = []
            for many in in_flight:
                outcome: Outcome = closed_loop(server.port, rows, many, seconds)
                found.append(Posting(many, outcome.rate, outcome.failures.total()))
    return found


def _requests(log: pl.DataFrame) -> Iterator[bytes]:
    while True:
        mark = time.time_ns()
        for number, (user, item, at) in enumerate(log.iter_rows()):
            event_id = f"{mark}-{number}"
            body = {"user_id": user, "item_id": item, "timestamp": at, "event_id": event_id}
            yield post("/interactions", body)


def measure_commands(
    artefact: Path, path: Path, log: pl.DataFrame, rows_at_once: int, fsync: str
) -> list[Command]:
    """Import, warm and export; before that the import with little memory, and after it the export
    from the first one on."""
    events, users = len(log), log["user_id"].n_unique()
    whole, again = str(path.parent / "whole"), str(path.parent / "again")
    found = []
    with store() as url:
        set_fsync(url, fsync)
        for name, arguments in (
            (f"import-log, {rows_at_once:,} rows at once",
             ["import-log", str(path), "--rows-at-once", str(rows_at_once)]),
            ("import-log", ["import-log", str(path)]),
            ("warm", ["warm", str(artefact), "--device", "cpu"]),
            ("export-log", ["export-log", whole]),
            ("export-log --since, all the same", ["export-log", again, "--since", whole]),
        ):  # fmt: skip
            if arguments[0] == "import-log":
                with redis.Redis.from_url(url) as client:
                    client.flushall()
            seconds, peak = _run([*arguments, "--redis", url])
            found.append(Command(name, seconds, events / seconds, users / seconds, peak))
    return found


def _run(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds of a command, and its peak of resident memory in MiB."""
    command, peak = [sys.executable, "-m", "cli.main", *arguments], 0
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak = max(peak, int(lines.get("VmHWM", "0").split()[0]))  # none once it has ended
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            assert process.stderr is not None
            raise CommandError(f"{arguments[0]} failed: {process.stderr.read().strip()}")
    return seconds, peak / 1024


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of the model.")],
    users: Annotated[int, typer.Option(min=1, help="Users of the log.")] = 10_000,
    events: Annotated[float, typer.Option(min=1, help="Events of a user, on average.")] = 25,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to post, each way.")] = 10,
    in_flight: Annotated[int, typer.Option(min=2, help="Requests in flight: many.")] = 64,
    rows_at_once: Annotated[int, typer.Option(min=1, help="Where memory is little.")] = 50_000,
    fsync: Annotated[str, typer.Option(help="Of the store: always or everysec.")] = "always",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure import-log, warm and export-log beside posting event by event."""
    with errors_without_traceback(), tempfile.TemporaryDirectory(prefix="tim4rec-") as folder:
        path = Path(folder) / "log.csv"
        log = write_log(path, load_artefact(artefact).items.ids, users, events)
        say(f"{len(log):,} events of {users:,} users, {path.stat().st_size / 2**20:.0f} MiB")
        postings = measure_posting(artefact, log, (1, in_flight), seconds, fsync)
        commands = measure_commands(artefact, path, log, rows_at_once, fsync)
    table = Table("", "events/s", "users/s", "peak, MiB", "times", box=None, padding=(0, 2, 0, 0))
    for posting in postings:
        table.add_row(f"POST, {posting.in_flight} in flight", f"{posting.events_s:,.0f}")
    both = len(log) / (commands[1].seconds + commands[2].seconds)
    figures = [(one.name, one.events_s, one.users_s, one.peak_mib) for one in commands]
    for name, rate, users_s, peak in (*figures, ("import-log and warm", both, None, None)):
        times = " / ".join(f"{rate / posting.events_s:.1f}" for posting in postings)
        shown = [f"{number:,.0f}" if number else "" for number in (users_s, peak)]
        table.add_row(name, f"{rate:,.0f}", *shown, times)
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        asked = {"users": users, "events": len(log), "fsync": fsync, "rows_at_once": rows_at_once}
        text = json.dumps(
            {
                "machine": machine,
                "asked": asked,
                "posting": [asdict(one) for one in postings],
                "commands": [asdict(one) for one in commands],
                "import_and_warm_events_s": both,
            },
            indent=2,
        )
        json_file.write_text(text + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)

"""When many requests wait at once, and what stood still then.

    python -m benchmarks.stalls --seconds 180 --json runs/stalls.json

A soak as tests/faults/test_soak.py runs it: 500 users, four GETs to a POST, a small model, a store
of its own, and a constant rate: a share of what 64 requests in flight come to. Every tenth of a
second in which the median request waits long is shown with what was seen meanwhile: by a bystander
on each core (benchmarks/bystander.py), by the service's own event loop (benchmarks/stalls_app.py),
by the store's latency monitor and by the generator. `machine`: what of the time the machine kept to
itself, and the wait that this comes to when everything else works as it should.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil  # type: ignore[import-untyped]
import redis
import torch
import typer
from rich.table import Table

from benchmarks import http_load, running
from benchmarks.bystander import Bystander, Seen
from benchmarks.http_load import Outcome
from cli.console import errors_without_traceback, out, say
from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.items import Items
from service.store.embedded import EmbeddedStore

USERS, ITEMS = 500, [f"i{number}" for number in range(40)]
IN_FLIGHT = 64
BIN_S = 0.1
WAITING_S = 0.03
STORE_SLOW_MS = 10
SAMPLE_S = 0.25
MOST_LOST = 0.35


@dataclass
class Note:
    """Something that was seen: when (time.perf_counter) and for how long, s."""

    kind: str
    at: float
    s: float
    more: dict[str, Any]


@dataclass
class Stall:
    """Consecutive tenths of a second, s after the beginning, in which the median request waited.

    machine_lost: share of the time that the machine kept; machine_ms: the wait that this explains.
    """

    at: float
    lasted: float
    median_ms: float
    worst_ms: float
    machine_lost: float
    machine_ms: float
    seen: list[str]


def model(folder: Path) -> None:
    """An artefact with weights at random."""
    torch.manual_seed(0)
    config = ModelConfig(n_items=len(ITEMS), d_model=16, head_dim=8, d_state=4, dropout=0.0)
    counts = np.arange(1, len(ITEMS) + 1)
    save_artefact(folder, TiM4Rec(config).eval(), Items(ITEMS, counts), {}, "a benchmark")


def load(kind: str, port: int, seed: int, *arguments: float) -> Outcome:
    """One of http_load's loads, for a process of its own."""
    outcome: Outcome = getattr(http_load, kind)(
        port, http_load.mixed(USERS, ITEMS, seed), *arguments
    )
    return outcome


def stalls(
    outcome: Outcome, seen: Seen, busy: float, notes: Sequence[Note], begun: float
) -> Iterator[Stall]:
    latencies, ended = np.array(outcome.latencies), np.array(outcome.ended)
    place = ((ended - begun) / BIN_S).astype(int)
    order = np.argsort(place, kind="stable")
    borders = np.searchsorted(place[order], np.arange(place.max() + 2))
    bins = [latencies[order[a:b]] for a, b in itertools.pairwise(borders)]
    medians = np.array([np.median(each) if len(each) else np.inf for each in bins])
    late = np.flatnonzero(medians > WAITING_S)
    backlog = seen.backlog_s(busy)
    for group in np.split(late, np.flatnonzero(np.diff(late) > 1) + 1):
        if not len(group):
            continue
        first, last = group[0] * BIN_S, (group[-1] + 1) * BIN_S
        waits = np.concatenate([bins[each] for each in group])
        worst = float(waits.max()) if len(waits) else float("inf")
        begin, end = begun + first - worst, begun + last
        inside = (seen.at >= begin) & (seen.at <= end)
        counts = Counter[str]()
        for note in notes:
            if note.at <= end and note.at + note.s >= begin:
                counts[_said(note)] += 1
        yield Stall(
            round(float(first), 1),
            round(float(last - first), 1),
            1000 * float(np.median(waits)) if len(waits) else float("inf"),
            1000 * worst,
            seen.between(begin, end).share_lost(),
            1000 * float(backlog[inside].max(initial=0.0)),
            [f"{number} x {what}" for what, number in counts.most_common(6)],
        )


def _said(note: Note) -> str:
    if note.kind == "stack":
        return " < ".join(reversed(note.more["stack"][-3:]))
    named = note.more.get("operation", note.more.get("generation", ""))
    return f"{note.kind} {named}".strip()


@dataclass
class Fifth:
    """A fifth of a load at a constant rate, by its 99th percentiles.

    p99_ms: of the latencies. machine_ms: of the waits that the machine explains. machine_lost:
    share of the time that the machine kept.
    """

    p99_ms: float
    machine_ms: float
    machine_lost: float


def fifths(outcome: Outcome, seen: Seen, busy: float) -> list[Fifth]:
    """`busy`: seconds of work that come in a second, on a machine that keeps nothing."""
    latencies = np.array_split(np.array(outcome.latencies), 5)
    backlog = np.array_split(seen.backlog_s(busy), 5)
    borders = np.linspace(seen.at[0], seen.at[-1], 6)
    return [
        Fifth(
            round(1000 * float(np.percentile(latencies[place], 99)), 1),
            round(1000 * float(np.percentile(backlog[place], 99)), 1),
            round(seen.between(borders[place], borders[place + 1]).share_lost(), 3),
        )
        for place in range(5)
    ]


def unsteady(parts: Sequence[Fifth]) -> list[Fifth]:
    """Those that waited more than three times as long as the median one, and as the machine
    explains. Where it kept too much, its own waits are all that there is to see."""
    usual = float(np.median([part.p99_ms for part in parts]))
    return [
        part
        for part in parts
        if part.machine_lost < MOST_LOST and part.p99_ms > 3 * (usual + part.machine_ms)
    ]


def busy_share(rate: float, full: Outcome, seen: Seen) -> float:
    """Of a service of which `full` is the capacity: the seconds of work that a second's requests
    are, on a machine that keeps nothing. `seen`: while that was measured."""
    return rate / full.rate * (1 - seen.share_lost())


def _notes(file: Path) -> list[Note]:
    found = []
    for line in file.read_text().splitlines():
        read = json.loads(line)
        found.append(Note(read.pop("kind"), read.pop("at"), read.pop("s"), read))
    return found


class StoreWatch:
    """Notes what the store says of itself, while the block runs."""

    def __init__(self, url: str) -> None:
        self._store = redis.Redis.from_url(url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.notes: list[Note] = []
        self.delayed_fsyncs = 0

    def __enter__(self) -> StoreWatch:
        self._store.config_set("latency-monitor-threshold", STORE_SLOW_MS)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        offset = time.time() - time.perf_counter()
        ask: Any = self._store.execute_command
        for name, *_ in ask("LATENCY", "LATEST"):
            kind = f"store's {name.decode()}"
            for at, ms in ask("LATENCY", "HISTORY", name):
                self.notes.append(Note(kind, at - offset, max(1.0, ms / 1000), {}))  # to the second
        self._store.close()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            began = time.perf_counter()
            info = self._store.info("persistence")
            took = time.perf_counter() - began
            self.delayed_fsyncs = info["aof_delayed_fsync"]
            if info["aof_rewrite_in_progress"]:
                self.notes.append(Note("store rewrites its file", began, SAMPLE_S, {}))
            if took > STORE_SLOW_MS / 1000:
                self.notes.append(Note("store slow to say how it is", began, took, {}))


@errors_without_traceback()
def main(
    seconds: Annotated[float, typer.Option(help="how long")] = 180.0,
    share: Annotated[float, typer.Option(help="of the capacity")] = 0.7,
    rate: Annotated[
        float | None, typer.Option(help="requests a second, instead of a share")
    ] = None,
    fsync: Annotated[str, typer.Option(help="of the store: always or everysec")] = "everysec",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="also write the results as JSON")
    ] = None,
) -> None:
    """Loads a service for a while and shows when its requests waited."""
    kept: Literal["always", "everysec"] = "always" if fsync == "always" else "everysec"
    with (
        tempfile.TemporaryDirectory(prefix="tim4rec-") as folder,
        EmbeddedStore(Path(folder, "store"), fsync=kept) as url,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as generator,
    ):
        model(Path(folder, "model"))
        notes_file = Path(folder, "notes")
        os.environ["STALLS_FILE"] = str(notes_file)
        command = ["serve", str(Path(folder, "model")), "--redis", url, "--log-level", "warning"]
        with running.server("benchmarks.stalls_app", *command) as service:
            store = int(Path(folder, "store", "valkey.pid").read_text())

            caller = generator.submit(os.getpid).result()

            def loaded(kind: str, seed: int, *arguments: float) -> tuple[Outcome, Seen]:
                with Bystander(service.process.pid, store, caller) as bystander:
                    outcome = generator.submit(load, kind, service.port, seed, *arguments).result()
                return outcome, bystander.seen

            loaded("closed_loop", 0, IN_FLIGHT, 4)  # every user is in the pool
            full, seen_full = loaded("closed_loop", 1, IN_FLIGHT, 6)
            asked = share * full.rate if rate is None else rate
            say(f"{full.rate:,.0f}/s with {IN_FLIGHT} in flight; now {asked:,.0f}/s")
            store_process, cpu = psutil.Process(store), service.cpu_s()
            store_cpu = sum(store_process.cpu_times()[:2])
            with StoreWatch(url) as store_watch:
                outcome, seen = loaded("open_loop", 2, asked, seconds)
            cpu, store_cpu = service.cpu_s() - cpu, sum(store_process.cpu_times()[:2]) - store_cpu
            notes = _notes(notes_file)
    busy = busy_share(asked, full, seen_full)
    begun = min(np.array(outcome.ended) - np.array(outcome.latencies))
    notes += store_watch.notes
    notes += [Note("generator behind", at - late, late, {}) for at, late in outcome.behind]
    found = list(stalls(outcome, seen, busy, notes, begun))
    parts = fifths(outcome, seen, busy)
    ours = [note for note in notes if note.at >= begun]
    summary = outcome.summary() | {
        "capacity": full.rate,
        "asked": asked,
        "fifths": [asdict(part) for part in parts],
        "unsteady": len(unsteady(parts)),
        "machine_lost": seen.share_lost(),
        "machine_slowest": float(np.percentile(seen.slowness, 99)),
        "bystander_late_ms": 1000 * float(seen.late.max()),
        "service_cpu": cpu / outcome.seconds,
        "store_cpu": store_cpu / outcome.seconds,
        "delayed_fsyncs": store_watch.delayed_fsyncs,
        "longest_ms": _longest(ours),
    }
    for name, value in summary.items():
        out.print(f"{name}: {value}")
    out.print(_table(found))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        rows = {"summary": summary, "stalls": [asdict(each) for each in found]}
        json_file.write_text(json.dumps(rows, indent=1))


def _longest(notes: Sequence[Note]) -> dict[str, str]:
    """By kind: how often, and the longest, ms."""
    times: dict[str, list[float]] = {}
    for note in notes:
        times.setdefault(note.kind, []).append(1000 * note.s)
    return {kind: f"{len(ms)}, {max(ms):.0f} ms" for kind, ms in sorted(times.items())}


def _table(found: Sequence[Stall]) -> Table:
    table = Table(title="When the median request waited over 30 ms")
    for name in ("at, s", "for, s", "median, ms", "worst, ms", "machine", "of it, ms", "seen"):
        table.add_column(name, justify="left" if name == "seen" else "right")
    for each in found:
        table.add_row(
            f"{each.at:.1f}", f"{each.lasted:.1f}", f"{each.median_ms:.0f}", f"{each.worst_ms:.0f}",
            f"{each.machine_lost:.0%}", f"{each.machine_ms:.0f}", "; ".join(each.seen),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    typer.run(main)

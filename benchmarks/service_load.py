"""What one process of the service carries, and how late its answers are.

    python -m benchmarks.service_load artefacts/amazon-beauty --json runs/service_load.json

Generator, service and store share the machine. First, with 64 requests in flight: the service
beside FastAPI routes that take and answer the same without doing anything, in turn in short rounds,
so that the machine's speed drifts alike for both; a ratio is the median over rounds. Then batches
of 1,000. Then a constant rate, four GETs to one POST from users drawn evenly, at rates that go up
until p99 is over 50 ms or an answer fails; a latency counts from when the request should have been
sent. `CPU` is that of the service's process for one request, `generator` the share of a core that
the load takes itself.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from benchmarks import http_load
from benchmarks.http_load import Outcome, closed_loop, open_loop
from benchmarks.running import Server, fill, server, service, set_fsync, store
from cli.console import errors_without_traceback, out, say
from model.artefact import load_artefact

LENGTHS = (4, 14)
"""Of the users' histories; Beauty's are 8.9 on average."""
MOST_P99_MS = 50.0
BATCH = 1000
BATCHES_IN_FLIGHT = 4
RATES = (500, 1000, 1500, 2000, 2500, 3000, 4000, 5000)


@dataclass
class BesideFastAPI:
    """Medians over rounds: answers a second, CPU microseconds of the process for one."""

    fsync: str
    request: str
    rate: float
    constant_rate: float
    ratio: float
    cpu_us: float
    constant_cpu_us: float
    p99_ms: float
    generator_share: float


@dataclass
class Batches:
    """Events a second, and the latency of a batch; `cpu_us`: of the service's process, an event."""

    fsync: str
    events_s: float
    p99_ms: float
    failed: int
    cpu_us: float


@dataclass
class AtRate:
    """One constant rate. `cpu`: share of a core that the service took; `hits`: of the pool."""

    fsync: str
    asked: float
    rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    failed: float
    generator_share: float
    cpu: float
    hits: float


def beside_fastapi(
    ours: Server,
    constant: Server,
    fsync: str,
    requests: dict[str, Callable[[], Iterator[bytes]]],
    in_flight: int,
    rounds: int,
    seconds: float,
) -> list[BesideFastAPI]:
    """Loads both in turn, a row for each kind of request."""
    found = []
    for name, asked in requests.items():
        measured: list[tuple[tuple[Outcome, float], tuple[Outcome, float]]] = []
        for turn in range(rounds + 1):  # the first is to warm up
            sides = {}
            for one in (ours, constant) if turn % 2 else (constant, ours):
                sides[one.port] = _closed(one, asked(), in_flight, seconds)
            if turn:
                measured.append((sides[ours.port], sides[constant.port]))
        median = statistics.median
        found.append(
            BesideFastAPI(
                fsync,
                name,
                median(one.rate for (one, _), _ in measured),
                median(other.rate for _, (other, _) in measured),
                median(one.rate / other.rate for (one, _), (other, _) in measured),
                median(cpu_us for (_, cpu_us), _ in measured),
                median(cpu_us for _, (_, cpu_us) in measured),
                median(one.ms(99) for (one, _), _ in measured),
                median(one.generator_s / one.seconds for (one, _), _ in measured),
            )
        )
    return found


def _closed(
    one: Server, requests: Iterator[bytes], in_flight: int, seconds: float
) -> tuple[Outcome, float]:
    before = one.cpu_s()
    outcome = closed_loop(one.port, requests, in_flight, seconds)
    if outcome.failures:
        raise RuntimeError(f"answers with other statuses than 200: {dict(outcome.failures)}")
    return outcome, (one.cpu_s() - before) / len(outcome.latencies) * 1e6


def at_rates(
    ours: Server,
    requests: Callable[[int], Iterator[bytes]],
    fsync: str,
    rates: Sequence[float],
    seconds: float,
) -> Iterator[AtRate]:
    """A row for each rate, up to the first that is too much."""
    open_loop(ours.port, requests(0), min(rates) / 2, seconds / 2)  # warm
    for place, rate in enumerate(rates):
        cpu, lookups, hits = ours.cpu_s(), _lookups(ours), _lookups(ours, result="hit")
        outcome = open_loop(ours.port, requests(place + 1), rate, seconds)
        used = (ours.cpu_s() - cpu) / outcome.seconds
        looked_up = max(1.0, _lookups(ours) - lookups)
        hit = (_lookups(ours, result="hit") - hits) / looked_up
        row = AtRate(fsync, rate, **outcome.summary(), cpu=used, hits=hit)
        yield row
        if row.p99_ms > MOST_P99_MS or row.failed:
            return


def _lookups(one: Server, **labels: str) -> float:
    return one.metric("tim4rec_pool_lookups_total", **labels)


def batches(ours: Server, fsync: str, users: int, items: Sequence[str], seconds: float) -> Batches:
    """Batches of interactions of users drawn evenly."""
    asked, before = http_load.batches(users, items, BATCH), ours.cpu_s()
    outcome = closed_loop(ours.port, asked, BATCHES_IN_FLIGHT, seconds)
    cpu_us = (ours.cpu_s() - before) / max(1, len(outcome.latencies) * BATCH) * 1e6
    return Batches(fsync, outcome.rate * BATCH, outcome.ms(99), outcome.failures.total(), cpu_us)


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of the model to serve.")],
    users: Annotated[int, typer.Option(min=1, help="Users with a history.")] = 100_000,
    warm: Annotated[
        bool, typer.Option("--warm", help="Ask for each user once before the reads.")
    ] = False,
    pool_capacity: Annotated[
        int | None, typer.Option(help="States in memory; the service's default if not given.")
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds beside FastAPI.")] = 6,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 1.5,
    rates: Annotated[
        list[float] | None, typer.Option("--rate", help="Requests a second; may be repeated.")
    ] = None,
    rate_seconds: Annotated[float, typer.Option(help="Time at each rate.")] = 8.0,
    fsyncs: Annotated[
        list[str] | None, typer.Option("--fsync", help="always, everysec; may be repeated.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure what one process carries."""
    beside: list[BesideFastAPI] = []
    batched: list[Batches] = []
    constant_rate: list[AtRate] = []
    options = [] if pool_capacity is None else ["--pool-capacity", str(pool_capacity)]
    with errors_without_traceback():
        items = load_artefact(artefact).items.ids
        with store() as url:
            say(f"{fill(url, items, users, LENGTHS):,} events of {users:,} users are in the store")
            with service(artefact, url, *options) as ours:
                for fsync in fsyncs or ["always", "everysec"]:
                    set_fsync(url, fsync)
                    if warm:
                        closed_loop(ours.port, http_load.everyone(users), in_flight, users)
                    if rounds:
                        known = {
                            "GET /recommend": lambda: http_load.reads(users),
                            "POST /interactions": lambda: http_load.writes(users, items),
                        }
                        with server("benchmarks.constant_app") as constant:
                            beside += beside_fastapi(
                                ours, constant, fsync, known, in_flight, rounds, seconds
                            )
                        batched.append(batches(ours, fsync, users, items, rounds * seconds / 2))
                        if warm:
                            closed_loop(ours.port, http_load.everyone(users), in_flight, users)
                    for row in at_rates(
                        ours,
                        lambda seed: http_load.mixed(users, items, seed),
                        fsync,
                        rates or RATES,
                        rate_seconds,
                    ):
                        constant_rate.append(row)
                        say(f"fsync {fsync}, {row.asked:g} requests/s: p99 {row.p99_ms:.1f} ms")
    _show(beside, batched, constant_rate)
    if json_file is not None:
        found = {
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "beside_fastapi": [asdict(row) for row in beside],
            "batches": [asdict(row) for row in batched],
            "at_rates": [asdict(row) for row in constant_rate],
        }
        json_file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"written to {json_file}")


def _show(
    beside: Sequence[BesideFastAPI], batched: Sequence[Batches], rates: Sequence[AtRate]
) -> None:
    if beside:
        table = Table("fsync", "in flight", "req/s", "FastAPI", "ratio", "p99 ms", "CPU µs",
                      "FastAPI", "generator")  # fmt: skip
        for row in beside:
            table.add_row(
                row.fsync,
                row.request,
                f"{row.rate:,.0f}",
                f"{row.constant_rate:,.0f}",
                f"{row.ratio:.2f}",
                f"{row.p99_ms:.1f}",
                f"{row.cpu_us:,.0f}",
                f"{row.constant_cpu_us:,.0f}",
                f"{row.generator_share:.0%}",
            )
        out.print(table)
        table = Table("fsync", f"events/s in batches of {BATCH:,}", "p99 ms", "failed", "CPU µs")
        for batch in batched:
            table.add_row(
                batch.fsync,
                f"{batch.events_s:,.0f}",
                f"{batch.p99_ms:.0f}",
                str(batch.failed),
                f"{batch.cpu_us:.0f}",
            )
        out.print(table)
    table = Table("fsync", "req/s", "done", "p50 ms", "p90 ms", "p99 ms", "failed", "CPU", "hits",
                  "generator")  # fmt: skip
    for at in rates:
        table.add_row(
            at.fsync,
            f"{at.asked:,.0f}",
            f"{at.rate:,.0f}",
            f"{at.p50_ms:.1f}",
            f"{at.p90_ms:.1f}",
            f"{at.p99_ms:.1f}",
            f"{at.failed:.0f}",
            f"{at.cpu:.0%}",
            f"{at.hits:.0%}",
            f"{at.generator_share:.0%}",
        )
    out.print(table)


if __name__ == "__main__":
    typer.run(main)

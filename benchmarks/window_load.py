"""The service beside one that recomputes the window for each answer, on the same model.

    python -m benchmarks.window_load artefacts/amazon-beauty --json runs/window_load.json

Users have histories of the window's length: 50, then 200. Both services are on one store with the
same fsync, and are loaded in turn in short rounds with four GETs to one POST: with 64 requests in
flight, for the throughput, and at a constant rate that both can carry, for the latency, which
counts from when a request should have been sent. `benchmarks/window_app.py` is the other service.
Figures are medians over rounds; `CPU` is the process's for one request.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import redis
import torch
import typer
from rich.table import Table

from benchmarks import http_load
from benchmarks.http_load import Outcome, closed_loop, open_loop
from benchmarks.running import Server, fill, histories, server, service, set_fsync, store
from cli.console import errors_without_traceback, out, say
from model.artefact import load_artefact

WINDOWS = (50, 200)
WARM_WITHIN_S = 60


@dataclass
class Row:
    """One service at one window. `rate` and `cpu_us` in flight; the rest at the constant rate."""

    window: int
    which: str
    rate: float
    cpu_us: float
    p99_in_flight_ms: float
    asked: float
    p50_ms: float
    p99_ms: float
    failed: int


def compare(
    sides: dict[str, Server],
    items: Sequence[str],
    users: int,
    window: int,
    rate: float,
    rounds: int,
    seconds: float,
) -> list[Row]:
    """A row for each service."""
    flying: dict[str, list[tuple[Outcome, float]]] = {which: [] for which in sides}
    steady: dict[str, list[Outcome]] = {which: [] for which in sides}
    for one in sides.values():  # every user known to it, every path warm
        closed_loop(one.port, http_load.everyone(users), 64, WARM_WITHIN_S)
    for turn in range(rounds):
        order = list(sides) if turn % 2 else list(sides)[::-1]
        for which in order:
            one, before = sides[which], sides[which].cpu_s()
            outcome = closed_loop(one.port, http_load.mixed(users, items, turn), 64, seconds)
            cpu_us = (one.cpu_s() - before) / max(1, len(outcome.latencies)) * 1e6
            flying[which].append((outcome, cpu_us))
        for which in order:
            asked = http_load.mixed(users, items, 1000 + turn)
            steady[which].append(open_loop(sides[which].port, asked, rate, seconds))
    median = statistics.median
    return [
        Row(
            window,
            which,
            median(outcome.rate for outcome, _ in flying[which]),
            median(cpu_us for _, cpu_us in flying[which]),
            median(outcome.ms(99) for outcome, _ in flying[which]),
            rate,
            median(outcome.ms(50) for outcome in steady[which]),
            median(outcome.ms(99) for outcome in steady[which]),
            sum(outcome.failures.total() for outcome in steady[which])
            + sum(outcome.failures.total() for outcome, _ in flying[which]),
        )
        for which in sides
    ]


def fill_lists(url: str, items: Sequence[str], users: int, window: int) -> None:
    """The same histories, as the other service keeps them."""
    with redis.Redis.from_url(url) as client:
        pipeline = client.pipeline(transaction=False)
        for one in histories(items, users, (window, window)):
            pairs = zip(one.item_ids, one.times_ms, strict=True)
            pipeline.rpush(f"h:{one.user_id}", *(f"{item} {at}" for item, at in pairs))
            if len(pipeline) == 100:
                pipeline.execute()
        pipeline.execute()


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of a model with the causal time path.")],
    users: Annotated[int, typer.Option(min=64, help="Users with a history.")] = 1000,
    rate: Annotated[float, typer.Option(help="Requests a second of the constant rate.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 3.0,
    fsync: Annotated[str, typer.Option(help="always or everysec.")] = "always",
    windows: Annotated[
        list[int] | None, typer.Option("--window", help="Length; may be repeated.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure both."""
    rows: list[Row] = []
    with errors_without_traceback():
        items = load_artefact(artefact).items.ids
        for window in windows or WINDOWS:
            with store() as url:
                started = time.monotonic()
                fill(url, items, users, (window, window))
                fill_lists(url, items, users, window)
                set_fsync(url, fsync)
                say(f"histories of {window}: filled in {time.monotonic() - started:.0f} s")
                other = server(
                    "benchmarks.window_app", str(artefact), "--redis", url, "--window", str(window)
                )
                with service(artefact, url) as ours, other as theirs:
                    sides = {"states": ours, "window": theirs}
                    rows += compare(sides, items, users, window, rate, rounds, seconds)
    table = Table("history", "served from", "req/s", "CPU µs", "p99 ms", f"p50 ms at {rate:g}/s",
                  "p99 ms", "failed")  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.window),
            row.which,
            f"{row.rate:,.0f}",
            f"{row.cpu_us:,.0f}",
            f"{row.p99_in_flight_ms:.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            str(row.failed),
        )
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        found = {"machine": machine, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)

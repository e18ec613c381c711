"""What a change of the model costs the requests around it, and counting outcomes every request.

    python -m benchmarks.model_switch models/one models/two --json runs/model_switch.json

Both artefacts lie in one folder. A service of one process gets requests at a constant rate; in the
second of three periods the other model is set. `resident` is the memory of the process at the end
of a period, and the largest within it. Then two services, one that counts outcomes and one that
does not, are loaded in turn, in short paired rounds; a ratio is the median of the rounds, with its
quartiles.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil  # type: ignore[import-untyped]
import redis
import typer
from rich.table import Table

from benchmarks.http_load import closed_loop, get, open_loop, post
from benchmarks.running import Server, fill, service, store
from cli.console import errors_without_traceback, out
from model.artefact import load_artefact

USERS = 2000
HISTORY = (20, 100)
IN_FLIGHT = 16
KEY = "of the admin"
PERIODS = ("before", "while it changes", "after")


def requests_of(items: list[str], posts: float) -> Iterator[bytes]:
    """Raw HTTP requests without an end, a share of them interactions."""
    draw = random.Random(0)
    while True:
        user = f"user-{draw.randrange(USERS)}"
        if draw.random() >= posts:
            yield get(f"/recommend?user_id={user}")
        else:
            yield post("/interactions", {"user_id": user, "item_id": draw.choice(items)})


class Changing(threading.Thread):
    """Sets a model after a while, and says how long it took until it served; watches memory."""

    def __init__(self, server: Server, model: str | None, after_s: float) -> None:
        super().__init__(daemon=True)
        self.server, self.model, self.after_s = server, model, after_s
        self.seconds: float | None = None
        self.most_mb = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        started, set_at = time.monotonic(), None
        base = f"http://127.0.0.1:{self.server.port}/admin/model"
        with httpx.Client(headers={"X-API-Key": KEY}, timeout=60) as client:
            while not self.over.wait(0.05):
                self.most_mb = max(self.most_mb, resident_mb(self.server.process))
                if self.model is None or self.seconds is not None:
                    continue
                if set_at is None and time.monotonic() - started > self.after_s:
                    set_at = time.monotonic()
                    version = client.post(base, json={"model": self.model}).json()["version"]
                elif set_at is not None:
                    served = client.get(base).json()["processes"]
                    if [one["version"] for one in served] == [version]:
                        self.seconds = time.monotonic() - set_at


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def change(one: Path, other: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Latencies and memory before, while and after another model is set."""
    items = load_artefact(one).items.ids
    found: dict[str, Any] = {}
    with store() as url:
        fill(url, items, USERS, HISTORY)
        with service(one, url, "--models-dir", str(one.parent)) as server:
            closed_loop(server.port, requests_of(items, 0.5), IN_FLIGHT, 5)  # every path warm
            for period in PERIODS:
                model = other.name if period == PERIODS[1] else None
                watching = Changing(server, model, seconds / 4)
                watching.start()
                outcome = open_loop(server.port, requests_of(items, 0.5), rate, seconds)
                watching.over.set()
                watching.join()
                found[period] = outcome.summary() | {
                    "changed_s": watching.seconds,
                    "resident_mb": resident_mb(server.process),
                    "most_resident_mb": watching.most_mb,
                }
            rebuilt = server.metric("tim4rec_model_rebuilds_total")
            found["rebuilds"] = rebuilt
    return found


def counting(artefact: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """CPU microseconds of a request with outcomes counted and without, of service and store."""
    items = load_artefact(artefact).items.ids
    kinds = {"GET": 0.0, "POST": 1.0}
    cost: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    without: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        sides = []
        for window in ("3600", "0"):
            url = stack.enter_context(store())
            fill(url, items, USERS, HISTORY)
            options = ("--outcome-window-s", window)
            sides.append((stack.enter_context(service(artefact, url, *options)), url))
        for server, _ in sides:
            closed_loop(server.port, requests_of(items, 0.5), IN_FLIGHT, 5)
        for turn in range(rounds):
            for kind, posts in kinds.items():
                for place in (0, 1):
                    which = (place + turn) % 2
                    server, url = sides[which]
                    before = server.cpu_s(), store_cpu_s(url)
                    outcome = closed_loop(
                        server.port, requests_of(items, posts), IN_FLIGHT, seconds
                    )
                    answered = len(outcome.latencies)
                    after = server.cpu_s(), store_cpu_s(url)
                    used = {
                        name: 1e6 * (b - a) / answered
                        for name, a, b in zip(("service", "store"), before, after, strict=True)
                    }
                    (cost, without)[which][kind].append(used)
    return {
        f"{kind} {name}": {
            "us": statistics.median(one[name] for one in cost[kind]),
            "us_without": statistics.median(one[name] for one in without[kind]),
            "ratio": statistics.quantiles(
                (a[name] / b[name] for a, b in zip(cost[kind], without[kind], strict=True)),
                method="inclusive",
            ),
        }
        for kind in kinds
        for name in ("service", "store")
    }


def store_cpu_s(url: str) -> float:
    with redis.Redis.from_url(url) as client:
        used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def main(
    one: Annotated[Path, typer.Argument(help="Artefact that serves first.")],
    other: Annotated[Path, typer.Argument(help="Artefact that takes over; in the same folder.")],
    rate: Annotated[float, typer.Option(help="Requests a second, half of them posts.")] = 100,
    seconds: Annotated[float, typer.Option(help="Of each period.")] = 20,
    rounds: Annotated[int, typer.Option(help="Of the comparison.")] = 6,
    json_file: Annotated[Path | None, typer.Option("--json", help="Figures go here.")] = None,
) -> None:
    """Changes the model of a service under load, and measures what counting outcomes costs."""
    os.environ["TIM4REC_ADMIN_KEYS"] = KEY
    with errors_without_traceback():
        found = {"change": change(one, other, rate, seconds)}
        found["outcomes"] = counting(one, rounds, 3) if rounds else {}
    table = Table("", "p50, ms", "p99, ms", "max, ms", "failed", "resident, MB", "most")
    for period in PERIODS:
        row = found["change"][period]
        table.add_row(
            period,
            *(f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")),
            str(row["failed"]),
            f"{row['resident_mb']:.0f}",
            f"{row['most_resident_mb']:.0f}",
        )
    out.print(table)
    out.print(f"it served {found['change'][PERIODS[1]]['changed_s']:.1f} s after it was set")
    table = Table("", "CPU, us", "not counted", "ratio", "quartiles")
    for name, row in found["outcomes"].items():
        low, middle, high = row["ratio"]
        cells = (f"{row['us']:.0f}", f"{row['us_without']:.0f}", f"{middle:.3f}")
        table.add_row(name, *cells, f"{low:.3f} to {high:.3f}")
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        json_file.write_text(json.dumps({"machine": machine} | found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

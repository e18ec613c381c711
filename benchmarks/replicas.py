"""Several processes of the service: what each way of dividing requests among them gives.

    python -m benchmarks.replicas artefacts/amazon-beauty --json runs/replicas.json

Each way gets a store with the same histories and the same requests, four GETs to one POST from
users drawn evenly, a fixed number in flight: one process; `--workers`, to which the kernel gives
connections; replicas behind nginx with deploy/nginx's configuration (by user), and with the same
but in turn. The pools are smaller than the number of users, so that one alone cannot hold all.
`hits`: of the pools' lookups, once every user has been asked for. Afterwards some users are asked
for at every replica and through the front: `differing` lists of items in other order, and the
largest difference of a score.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.table import Table

from benchmarks.http_load import closed_loop
from benchmarks.nginx import nginx
from benchmarks.running import Server, fill, service, store
from cli.console import errors_without_traceback, out, say
from model.artefact import load_artefact

LENGTHS = (4, 14)
WAYS = ("one process", "workers", "in turn", "by user")


@dataclass(frozen=True)
class Found:
    """One way: requests a second, and the rest as in the module's description."""

    way: str
    processes: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int
    hits: float
    compared: int
    differing: int
    largest_difference: float


def requests(users: int, items: Sequence[str], seed: int, *, named: bool = True) -> Iterator[bytes]:
    """Four GETs to one POST, with the header X-User-Id if `named`."""
    draw, number = random.Random(seed), 0
    while True:
        user = f"user-{draw.randrange(users)}"
        head = f"HTTP/1.1\r\nHost: localhost\r\n{f'X-User-Id: {user}' if named else 'X-None: '}\r\n"
        if draw.random() < 0.8:
            yield f"GET /recommend?user_id={user}&k=10 {head}\r\n".encode()
            continue
        number += 1
        event = {"user_id": user, "item_id": draw.choice(items), "event_id": f"{seed}-{number}"}
        body = json.dumps(event)
        yield (
            f"POST /interactions {head}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


def measure(
    way: str,
    artefact: Path,
    items: Sequence[str],
    *,
    processes: int,
    users: int,
    pool: int,
    in_flight: int,
    seconds: float,
    compared: int,
) -> Found:
    """One way of dividing the requests among the processes."""
    options = ["--pool-capacity", str(pool), "--max-batch", str(min(128, pool // 4))]
    with ExitStack() as stack:
        url = stack.enter_context(store())
        fill(url, items, users, LENGTHS)
        if way == "workers":
            options += ["--workers", str(processes)]
        count = processes if way in ("in turn", "by user") else 1
        replicas = [stack.enter_context(service(artefact, url, *options)) for _ in range(count)]
        front = replicas[0].port
        if count > 1:
            sticky = way == "by user"
            front = stack.enter_context(nginx([one.port for one in replicas], sticky=sticky))
        _ask_for_all(front, users)
        before = [_lookups(replicas, result) for result in ("hit", "miss")]
        outcome = closed_loop(front, requests(users, items, 1), in_flight, seconds)
        hits, misses = (
            _lookups(replicas, result) - was
            for result, was in zip(("hit", "miss"), before, strict=True)
        )
        asked = random.Random(2).sample(range(users), min(compared, users))
        ports = [front, *(one.port for one in replicas)]
        differing, largest = _compare(ports, asked)
    failed = outcome.failures.total()
    return Found(
        way, 1 if way == "one process" else processes, outcome.rate, outcome.ms(50),
        outcome.ms(99), failed, hits / (hits + misses), len(asked), differing, largest,
    )  # fmt: skip


def _lookups(replicas: Sequence[Server], result: str) -> float:
    return sum(one.metric("tim4rec_pool_lookups_total", result=result) for one in replicas)


def _ask_for_all(port: int, users: int) -> None:
    """Asks for every user once, `requests`' header included."""
    asked = (
        f"GET /recommend?user_id=user-{n} HTTP/1.1\r\nHost: localhost\r\nX-User-Id: user-{n}\r\n"
        "\r\n"
        for n in range(users)
    )
    outcome = closed_loop(port, (request.encode() for request in asked), 32, 600)
    assert not outcome.failures, outcome.failures


def _compare(ports: Sequence[int], users: Sequence[int]) -> tuple[int, float]:
    differing, largest = 0, 0.0
    with httpx.Client(timeout=60) as client:
        for number in users:
            lists = []
            for port in ports:
                asked = {"user_id": f"user-{number}", "k": "10", "at": "2100-01-01T00:00:00Z"}
                answer = client.get(f"http://127.0.0.1:{port}/recommend", params=asked)
                lists.append(answer.raise_for_status().json()["items"])
            for other in lists[1:]:
                pairs = list(zip(lists[0], other, strict=True))
                differing += any(a["item_id"] != b["item_id"] for a, b in pairs)
                largest = max(largest, *(abs(a["score"] - b["score"]) for a, b in pairs))
    return differing, largest


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of the model.")],
    processes: Annotated[int, typer.Option(min=2, help="Workers, or replicas.")] = 2,
    users: Annotated[int, typer.Option(min=1)] = 3000,
    pool: Annotated[int, typer.Option(min=4, help="States a process holds.")] = 2048,
    in_flight: Annotated[int, typer.Option(min=1)] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of load, each way.")] = 10,
    compared: Annotated[int, typer.Option(min=1, help="Users asked for everywhere.")] = 100,
    way: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(WAYS)}.", show_default="all")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure ways of dividing requests among processes."""
    formats: dict[str, Callable[[Found], str]] = {
        "processes": lambda one: f"{one.processes}",
        "req/s": lambda one: f"{one.rate:,.0f}",
        "p50 ms": lambda one: f"{one.p50_ms:.1f}",
        "p99 ms": lambda one: f"{one.p99_ms:.1f}",
        "failed": lambda one: f"{one.failed}",
        "hits": lambda one: f"{one.hits:.1%}",
        "differing": lambda one: f"{one.differing} of {one.compared}",
        "difference": lambda one: f"{one.largest_difference:.1e}",
    }
    with errors_without_traceback():
        items = load_artefact(artefact).items.ids
        found = []
        for one in way or WAYS:
            say(f"{one} ...")
            found.append(
                measure(
                    one, artefact, items, processes=processes, users=users, pool=pool,
                    in_flight=in_flight, seconds=seconds, compared=compared,
                )
            )  # fmt: skip
    table = Table("", *formats, box=None, padding=(0, 2, 0, 0))
    for row in found:
        table.add_row(row.way, *(shown(row) for shown in formats.values()))
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        asked = {"users": users, "pool": pool, "in_flight": in_flight, "seconds": seconds}
        rows = [asdict(one) for one in found]
        text = json.dumps({"machine": machine, "asked": asked, "rows": rows}, indent=2)
        json_file.write_text(text + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)

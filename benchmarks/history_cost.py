"""What one more interaction costs at different lengths of the history.

    python -m benchmarks.history_cost ARTEFACT --json runs/history_cost.json

A service process with an embedded store (fsync always), one user for each length. In turn, so
that the machine's speed drifts alike for all: POST /interactions, then GET /recommend, which
needs the state with that interaction in it. Beside them, with the same weights and in one
process, what a service without states would do: the whole window recomputed; and one step as it is
served. Medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from model.artefact import Artefact, load_artefact
from model.compiled_stepper import CompiledStepper

LENGTHS = (10, 100, 1_000, 10_000)
START_MS = 1_600_000_000_000
HOUR_MS = 3_600_000
SLOT = np.array([0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def history(artefact: Artefact, length: int) -> tuple[list[int], list[int]]:
    """Item indices and times (ms) of one user; the same in the service and offline."""
    draw = random.Random(length)
    items = [draw.randint(1, artefact.model.config.n_items) for _ in range(length)]
    times = [START_MS + i * HOUR_MS for i in range(length)]
    return items, times


def through_the_service(
    artefact: Artefact, lengths: list[int], rounds: int
) -> dict[int, tuple[float, float]]:
    """Median milliseconds of (POST, GET) for each length."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as folder:
        command = [sys.executable, "-m", "cli.main", "serve", str(artefact.folder)]
        command += ["--port", str(port), "--data-dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_ready(client, process)
                for length in lengths:
                    fill(client, artefact, length)
                return measure_requests(client, artefact, lengths, rounds)
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service did not become ready")


def fill(client: httpx.Client, artefact: Artefact, length: int) -> None:
    items, times = history(artefact, length)
    for start in range(0, length, 1000):
        body = [
            {"user_id": f"u{length}", "item_id": artefact.items.ids[item - 1], "timestamp": at}
            for item, at in zip(
                items[start : start + 1000], times[start : start + 1000], strict=True
            )
        ]
        client.post("/interactions/batch", json={"interactions": body}).raise_for_status()
    client.get("/recommend", params={"user_id": f"u{length}"}).raise_for_status()


def measure_requests(
    client: httpx.Client, artefact: Artefact, lengths: list[int], rounds: int
) -> dict[int, tuple[float, float]]:
    seconds: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in lengths}
    draw = random.Random(0)
    for _ in range(rounds):
        for length in draw.sample(lengths, len(lengths)):
            item = draw.choice(artefact.items.ids)
            posted, read = seconds[length]
            started = time.perf_counter()
            answer = client.post("/interactions", json={"user_id": f"u{length}", "item_id": item})
            posted.append(time.perf_counter() - started)
            answer.raise_for_status()
            started = time.perf_counter()
            answer = client.get("/recommend", params={"user_id": f"u{length}", "k": 10})
            read.append(time.perf_counter() - started)
            assert answer.json()["version"] > length
    return {n: (median_ms(p), median_ms(r)) for n, (p, r) in seconds.items()}


@torch.inference_mode()
def in_one_process(
    artefact: Artefact, lengths: list[int], rounds: int
) -> dict[int, tuple[float, float]]:
    """Median milliseconds of (recomputing the window, one step) for each length."""
    model = artefact.model
    jobs: dict[tuple[int, str], Callable[[], object]] = {}
    for length in lengths:
        items, times = (torch.tensor([column]) for column in history(artefact, length))
        size = torch.tensor([length])
        state = model.prefill(items, times, size, model.new_state(1))
        jobs[length, "window"] = lambda i=items, t=times, n=size: model.prefill(  # type: ignore[misc]
            i, t, n, model.new_state(1)
        )
        item, at = items[:, 0].numpy(), times[:, -1].numpy() + 1
        stepper = CompiledStepper(model, state)
        jobs[length, "step"] = lambda i=item, t=at, s=stepper: s.step(SLOT, i, t)  # type: ignore[misc]
    seconds: dict[tuple[int, str], list[float]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job, work in jobs.items():
            started = time.perf_counter()
            work()
            seconds[job].append(time.perf_counter() - started)
    return {n: (median_ms(seconds[n, "window"]), median_ms(seconds[n, "step"])) for n in lengths}


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    artefact = load_artefact(args.artefact)
    served = through_the_service(artefact, args.lengths, args.rounds)
    alone = in_one_process(artefact, args.lengths, max(10, args.rounds // 5))
    table = Table(
        "history", "POST ms", "GET ms", "both / first", "step ms", "window ms", "window / step"
    )
    rows = []
    for length in args.lengths:
        post, get = served[length]
        window, step = alone[length]
        first = sum(served[args.lengths[0]])
        row = {
            "history": length,
            "post_ms": post,
            "get_ms": get,
            "over_first": (post + get) / first,
            "step_ms": step,
            "window_ms": window,
        }
        rows.append(row)
        table.add_row(
            f"{length:,}",
            f"{post:.2f}",
            f"{get:.2f}",
            f"{(post + get) / first:.2f}",
            f"{step:.2f}",
            f"{window:.2f}",
            f"{window / step:.0f}",
        )
    Console().print(table)
    if args.json:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()

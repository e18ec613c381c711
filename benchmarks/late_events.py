"""How long the store is busy with a late event that is put in its place, by how many it moves.

    python -m benchmarks.late_events --json runs/late_events.json

A store of its own, with the embedded store's options. For each row a user with 1,000 interactions,
then late events that move so many, an append each; beside them one that is clamped, and one in
order. The time is what the store's one thread worked for an append (`INFO cpu`), during which it
serves nobody else. Rows take turns, and each has its least of `--rounds`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import redis
import typer
from rich.table import Table

from cli.console import err, errors_without_traceback, out
from service.store.client import Store
from service.store.embedded import EmbeddedStore
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import NewEvent, Verdict, new_uid

START_MS = 1_700_000_000_000
STEP_MS = 1_000_000
HISTORY = 1000
APPENDS = 20


@dataclass(frozen=True)
class Cost:
    """`store_us`: microseconds of the store for one append that moves `moved` events."""

    policy: Literal["clamp", "replay"]
    moved: int
    store_us: float


async def measure(url: str, moves: list[int], rounds: int) -> list[Cost]:
    """The cost of a clamped event, of one in order, and of those that move so many. Raises
    StoreError."""
    most = max(moves)
    cases: list[tuple[Literal["clamp", "replay"], int]] = [("clamp", 1), ("replay", 0)]
    cases += [("replay", moved) for moved in moves]
    best: dict[int, float] = {}
    with redis.Redis.from_url(url) as client:
        async with Store(url, timeout_s=60) as store:
            for turn in range(rounds):
                for case, (policy, moved) in enumerate(cases):
                    log = EventLog(
                        store, page=1, late_policy=policy, replay_limit=most,
                        dedup_window=max(HISTORY, 2 * most),
                    )  # fmt: skip
                    user = f"{turn} {case}"
                    for start in range(0, HISTORY, log.max_events):
                        count = min(log.max_events, HISTORY - start)
                        times = [START_MS + n * STEP_MS for n in range(start, start + count)]
                        await _append(log, user, times)
                    before = _worked_us(client)
                    for n in range(APPENDS):
                        # After the event that has `moved` ones behind it, and the ones before.
                        after = START_MS + (HISTORY - 1 - moved) * STEP_MS
                        await _append(log, user, [after + n + 1 if moved else after + n * STEP_MS])
                    cost = (_worked_us(client) - before) / APPENDS
                    best[case] = min(best.get(case, cost), cost)
    return [Cost(policy, moved, best[case]) for case, (policy, moved) in enumerate(cases)]


def _worked_us(client: redis.Redis) -> float:
    cpu = client.info("cpu")
    return 1e6 * float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


async def _append(log: EventLog, user: str, times: list[int]) -> None:
    events = [NewEvent(new_uid(), f"{n:08}", time_ms) for n, time_ms in enumerate(times)]
    (reply,) = await log.exchange([LogRequest(user, None, events)])
    if isinstance(reply, StoreError):
        raise reply
    assert all(o.verdict in (Verdict.APPLIED, Verdict.LATE) for o in reply.outcomes)


def main(
    moves: Annotated[list[int] | None, typer.Argument(help="Events to move.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="The quickest of so many.")] = 5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure how long a late event keeps the store busy."""
    with (
        errors_without_traceback(),
        tempfile.TemporaryDirectory(prefix="tim4rec-") as name,
        EmbeddedStore(Path(name), fsync="everysec") as url,
    ):
        costs = asyncio.run(measure(url, moves or [1, 10, 50, 200, 500], rounds))
    table = Table("late_policy", "events moved", "the store is busy for, µs")
    for cost in costs:
        table.add_row(cost.policy, f"{cost.moved:,}", f"{cost.store_us:.0f}")
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")
        err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

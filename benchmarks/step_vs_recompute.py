"""One more interaction: a step from the state, or the window recomputed with the same weights.

    python -m benchmarks.step_vs_recompute artefacts/amazon-beauty --json runs/step.json

One process, one thread, no HTTP and no store. A step reads nothing of the history but the state, so
its cost should not depend on the length; recomputing has a pass over the last 50, 200 or all
interactions, without a state or a time for the request. For one user, and for 64 in one batch. In
turn in short rounds, so that the machine's speed drifts alike for all; figures are medians of the
thread's CPU time, which other programs disturb less than the clock.

Then the two ways to bring users up with several interactions each: by steps, or by one pass over
all of them (`TiM4Rec.prefill`). The lowest of the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor

from benchmarks.rounds import cpu_seconds, median_ratio
from cli.console import errors_without_traceback, out, say
from model.artefact import load_artefact
from model.compiled_stepper import CompiledStepper
from model.tim4rec import TiM4Rec

HOUR_MS = 3_600_000
START_MS = 1_600_000_000_000
WINDOW = 200
"""What a step is compared with; the other window is the usual shorter one."""
WINDOWS = (50, WINDOW)
BATCHES = (1, 64)
STEPS_A_ROUND = 10
CAUGHT_UP = {1: (1, 10, 64, 200, 1000), 8: (1, 10, 64, 200), 64: (1, 10, 64, 200)}
"""Users, and the interactions that each lacks."""


@dataclass
class Row:
    """CPU milliseconds of a whole batch. `times_cheaper`: the window of 200 over the step;
    `over_shortest`: the step over that of the shortest history; both medians over rounds."""

    batch: int
    history: int
    step_ms: float
    window_ms: dict[int, float]
    times_cheaper: float
    over_shortest: float


@dataclass
class CaughtUp:
    """CPU milliseconds of a whole batch of users who lack so many interactions each."""

    batch: int
    events: int
    steps_ms: float
    prefill_ms: float


def catch_up(model: TiM4Rec, batch: int, length: int, rounds: int) -> CaughtUp:
    """Both ways, in turn."""
    items, times = histories(model.config.n_items, batch, length)
    lengths = torch.full((batch,), length)
    stepper, slots = CompiledStepper(model, model.new_state(batch)), np.arange(batch).repeat(length)
    flat = items.flatten().numpy(), times.flatten().numpy()
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "steps": (lambda: stepper.step(slots, *flat), 1),
        "prefill": (lambda: model.prefill(items, times, lengths, model.new_state(batch)), 1),
    }
    lowest = {name: 1000 * min(taken) for name, taken in cpu_seconds(jobs, rounds).items()}
    return CaughtUp(batch, length, lowest["steps"], lowest["prefill"])


def measure(model: TiM4Rec, batch: int, lengths: list[int], rounds: int) -> list[Row]:
    """A row for each length of the history."""
    jobs: dict[tuple[str, int], tuple[Callable[[], object], int]] = {}
    for length in lengths:
        items, times = histories(model.config.n_items, batch, length)
        jobs["step", length] = stepping(model, items, times), STEPS_A_ROUND
    for window in WINDOWS:
        items, times = histories(model.config.n_items, batch, window)
        jobs["window", window] = recomputing(model, items, times), 1
    seconds = cpu_seconds(jobs, rounds)
    shortest = seconds["step", lengths[0]]
    return [
        Row(
            batch,
            length,
            1000 * statistics.median(seconds["step", length]),
            {window: 1000 * statistics.median(seconds["window", window]) for window in WINDOWS},
            median_ratio(seconds["window", WINDOW], seconds["step", length]),
            median_ratio(seconds["step", length], shortest),
        )
        for length in lengths
    ]


def histories(n_items: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """(B, L) items and times, drawn anew for each length."""
    draw = torch.Generator().manual_seed(length)
    items = torch.randint(1, n_items + 1, (batch, length), generator=draw)
    gaps = torch.randint(0, 2 * HOUR_MS, (batch, length), generator=draw)
    return items, START_MS + gaps.cumsum(1)


def stepping(model: TiM4Rec, items: Tensor, times: Tensor) -> Callable[[], None]:
    """Another interaction of each of B users who all have the first one's history (B, L)."""
    state, batch = model.new_state(1), len(items)
    for start in range(0, items.shape[1], 512):
        part = items[:1, start : start + 512], times[:1, start : start + 512]
        state = model.prefill(*part, torch.tensor([part[0].shape[1]]), state)
    pool = state.rows(torch.zeros(batch, dtype=torch.long))  # the values cost nothing
    stepper, slots, item = CompiledStepper(model, pool), np.arange(batch), items[:, 0].numpy()
    at = times[:1, -1].repeat(batch).numpy()

    def step() -> None:
        nonlocal at
        at = at + HOUR_MS
        stepper.step(slots, item, at)

    return step


def recomputing(model: TiM4Rec, items: Tensor, times: Tensor) -> Callable[[], Tensor]:
    """A pass over windows (B, L)."""
    lengths = torch.full((len(items),), items.shape[1])
    seconds = times / 1000
    return lambda: model.window_output(items, lengths, seconds)


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of a model with the causal time path.")],
    lengths: Annotated[
        list[int] | None, typer.Option("--length", help="Of the history; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 40,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure a step against recomputing."""
    torch.set_num_threads(1)
    with errors_without_traceback(), torch.inference_mode():
        model = load_artefact(artefact).model
        if not isinstance(model, TiM4Rec) or not model.steppable:
            raise ValueError(f"{artefact}: a model of the causal time path is needed")
        chosen = lengths or [10, 100, 1000, 10_000]
        rows = [row for batch in BATCHES for row in measure(model, batch, chosen, rounds)]
        caught_up = [
            catch_up(model, batch, length, rounds)
            for batch, lengths_ in CAUGHT_UP.items()
            for length in lengths_
        ]
    table = Table("users", "history", "step ms", "over first", *(f"last {n} ms" for n in WINDOWS),
                  f"last {WINDOW} / step")  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.batch),
            f"{row.history:,}",
            f"{row.step_ms:.3f}",
            f"{row.over_shortest:.2f}",
            *(f"{ms:.2f}" for ms in row.window_ms.values()),
            f"{row.times_cheaper:.0f}",
        )
    out.print(table)
    table = Table("users", "events each", "steps ms", "prefill ms")
    for one in caught_up:
        ways = (f"{ms:.2f}" for ms in (one.steps_ms, one.prefill_ms))
        table.add_row(str(one.batch), str(one.events), *ways)
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        found = {
            "machine": machine,
            "rows": [asdict(row) for row in rows],
            "caught_up": [asdict(row) for row in caught_up],
        }
        json_file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)

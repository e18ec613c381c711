"""What a model costs by the length of its histories: training, answers, and one more interaction.

    python -m benchmarks.sequence_length --json runs/lengths.json

The rows of Table 5 and Figure 6 of TiM4Rec's paper (arXiv 2409.16182) in our code, each model in
its published size: SASRec, TiSASRec, LRURec, Mamba4Rec, TiM4Rec with the paper's time path
(`sequence`), and beside them ours (`causal`). SSD4Rec* is ours without time. One CPU thread,
float32, our loss and optimizer, histories of random items that are all as long as the window:

* training: a step of AdamW with a target at the last position of each history, as in the paper, and
  one with a target at every position, which all but `sequence` allow
* inference: the 10 best items after each history, computed from all of it
* one more interaction of one user: the compiled step that serves, or the window recomputed

Medians over rounds; ratios are medians of each round's ratio.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.table import Table

from benchmarks.baselines import LRURecConfig, Mamba4RecConfig, SASRecConfig, TiSASRecConfig
from benchmarks.rounds import cpu_seconds, median_ratio
from benchmarks.step_vs_recompute import HOUR_MS, STEPS_A_ROUND, histories, recomputing, stepping
from cli.console import out, say
from model import ModelConfig, Recommender, TiM4Rec
from training.batches import Batch
from training.config import TrainingConfig
from training.loss import batch_queries, softmax_loss
from training.optimizers import clip, optimizers_of

OURS = "TiM4Rec causal"
ML_1M_ITEMS = 3416
LENGTHS = (50, 100, 200, 400)
Work = Literal["last", "every", "inference"]
TITLES: dict[Work, str] = {
    "last": "training, a target a history",
    "every": "training, a target a position",
    "inference": "inference",
}


@dataclass(frozen=True, slots=True)
class Row:
    """CPU milliseconds of a batch. `over_ours`: over those of ours at that length;
    `over_shortest`: over the same model's at the shortest length."""

    work: Work
    model: str
    length: int
    ms: float
    over_ours: float
    over_shortest: float


@dataclass(frozen=True, slots=True)
class Served:
    """CPU milliseconds of one more interaction of one user."""

    length: int
    step_ms: float
    window_ms: float
    times_cheaper: float


def models(n_items: int, length: int) -> dict[str, Recommender]:
    """All that are compared, with fresh weights, for histories of that length."""
    torch.manual_seed(0)
    return {
        OURS: TiM4Rec(ModelConfig(n_items)),
        "SSD4Rec*": TiM4Rec(ModelConfig(n_items, time="none")),
        "TiM4Rec sequence": TiM4Rec(ModelConfig(n_items, time="sequence", max_len=length)),
        "Mamba4Rec": Mamba4RecConfig(n_items, max_len=length).build(),
        "LRURec": LRURecConfig(n_items, max_len=length).build(),
        "SASRec": SASRecConfig(n_items, max_len=length).build(),
        "TiSASRec": TiSASRecConfig(n_items, max_len=length).build(),
    }


def random_batch(n_items: int, batch: int, length: int) -> Batch:
    """Whole histories with a target at every position, an item a position."""
    items, times = histories(n_items, batch, length + 1)
    lengths = torch.full((batch,), length)
    return Batch(items[:, :-1], times[:, :-1], times[:, 1:], items[:, 1:], lengths)


def last_targets(batch: Batch) -> Batch:
    """The same, with a target at the last position only."""
    targets = torch.zeros_like(batch.targets)
    targets[:, -1] = batch.targets[:, -1]
    return Batch(batch.items, batch.times, batch.request_times, targets, batch.lengths)


def training(model: Recommender, batch: Batch) -> Callable[[], None]:
    """A step as `training.trainer` does it."""
    config = TrainingConfig()
    optimizers = optimizers_of(model, config)

    def step() -> None:
        model.train()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        softmax_loss(model, *batch_queries(model, batch)).backward()  # type: ignore[no-untyped-call]
        clip(model, config.clip)
        for optimizer in optimizers:
            optimizer.step()

    return step


def inference(model: Recommender, batch: Batch) -> Callable[[], None]:
    """The best items after each history, asked for an hour later."""
    asked = batch.times[:, -1] + HOUR_MS

    @torch.inference_mode()
    def answer() -> None:
        model.eval()
        before = model.new_state(len(batch.items))
        state = model.prefill(batch.items, batch.times, batch.lengths, before)
        model.scores(model.query(state, asked)).topk(min(10, model.n_scored))

    return answer


def measure(n_items: int, batch: int, lengths: list[int], rounds: int) -> list[Row]:
    """A row for each work, model and length."""
    seconds: dict[tuple[Work, str, int], list[float]] = {}
    for length in lengths:
        whole = random_batch(n_items, batch, length)
        jobs: dict[tuple[Work, str, int], tuple[Callable[[], object], int]] = {}
        for name, model in models(n_items, length).items():
            jobs["last", name, length] = training(model, last_targets(whole)), 1
            if model.causal:
                jobs["every", name, length] = training(model, whole), 1
            jobs["inference", name, length] = inference(model, whole), 1
        seconds |= cpu_seconds(jobs, rounds)
    return [
        Row(
            work,
            name,
            length,
            1000 * statistics.median(taken),
            median_ratio(taken, seconds[work, OURS, length]),
            statistics.median(taken) / statistics.median(seconds[work, name, lengths[0]]),
        )
        for (work, name, length), taken in seconds.items()
    ]


@torch.inference_mode()
def served(n_items: int, lengths: list[int], rounds: int) -> list[Served]:
    """A row for each length."""
    model = TiM4Rec(ModelConfig(n_items)).eval()
    jobs: dict[tuple[str, int], tuple[Callable[[], object], int]] = {}
    for length in lengths:
        history = histories(n_items, 1, length)
        jobs["step", length] = stepping(model, *history), STEPS_A_ROUND
        jobs["window", length] = recomputing(model, *history), 1
    seconds = cpu_seconds(jobs, rounds)
    return [
        Served(
            length,
            1000 * statistics.median(seconds["step", length]),
            1000 * statistics.median(seconds["window", length]),
            median_ratio(seconds["window", length], seconds["step", length]),
        )
        for length in lengths
    ]


def length_table(rows: list[Row], work: Work) -> Table:
    """Each model's ratio to ours by length; of ours the milliseconds too."""
    lengths = list(dict.fromkeys(row.length for row in rows))
    table = Table(
        TITLES[work],
        *(f"at {length}" for length in lengths),
        f"{lengths[-1]} over {lengths[0]}",
    )
    for name in dict.fromkeys(row.model for row in rows if row.work == work):
        found = [row for row in rows if (row.work, row.model) == (work, name)]
        cells = [f"{row.ms:.1f} ms" if name == OURS else f"{row.over_ours:.2f} x" for row in found]
        table.add_row(name, *cells, f"{found[-1].over_shortest:.1f}")
    return table


def served_table(rows: list[Served]) -> Table:
    table = Table("history", "step ms", "recomputed ms", "recomputed / step")
    for row in rows:
        table.add_row(
            str(row.length),
            f"{row.step_ms:.3f}",
            f"{row.window_ms:.2f}",
            f"{row.times_cheaper:.0f}",
        )
    return table


def main(
    lengths: Annotated[
        list[int] | None,
        typer.Option("--length", min=1, help="Of the histories; may be repeated."),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="V; MovieLens-1M's.")] = ML_1M_ITEMS,
    batch: Annotated[int, typer.Option(min=1, help="Histories.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure training, inference and a step by length."""
    torch.set_num_threads(1)
    chosen = sorted(set(lengths or LENGTHS))
    rows = measure(items, batch, chosen, rounds)
    steps = served(items, chosen, 10 * rounds)
    for work in TITLES:
        out.print(length_table(rows, work))
    out.print(served_table(steps))
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        found = {
            "machine": machine,
            "items": items,
            "batch": batch,
            "rounds": rounds,
            "rows": [asdict(row) for row in rows],
            "served": [asdict(row) for row in steps],
        }
        json_file.write_text(json.dumps(found, indent=2) + "\n")
        say(f"written to {json_file}")


if __name__ == "__main__":
    typer.run(main)

"""What float16 snapshots cost: the same users, once in float32 and once rounded.

    python -m benchmarks.snapshot_precision artefacts/ml-100k data/ml-100k/interactions.csv.gz \
        --json snapshot_precision.json

Each simulated user lives through 1 000 interactions of the log: histories of the longest users,
one after the other a day apart where one is too short. Beside the float32 state runs one that
is rounded to float16 every 64 steps, as every worker does where snapshots are float16. After
each step both give their best items, asked for at the time of the next interaction.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor

from cli.console import CommandError, err, errors_without_traceback, out
from model import UNKNOWN_TIME, TiM4Rec
from model.artefact import Artefact, load_artefact
from training.interactions import read_log

DAY_MS = 86_400_000
AFTER = (0, 8, 63)
"""Steps since a rounding that are told apart: 0 is right after it, 63 before the next of 64."""


@dataclass(frozen=True)
class Agreement:
    """float16 against float32, over all lists after the first rounding.

    overlap, same_order: mean share of the best `k` in both, and share of lists equal in order.
    worst_overlap: of one list. largest_difference: of any item's score; typical_spread: standard
    deviation of one list's scores over the catalogue, to compare it with.
    refused: roundings left out because a value does not fit. bytes: of a packed state without
    seen items. overlap_after: mean overlap that many steps after a rounding.
    """

    users: int
    steps: int
    every: int
    k: int
    lists: int
    overlap: float
    same_order: float
    worst_overlap: float
    largest_difference: float
    typical_spread: float
    refused: int
    bytes_float32: int
    bytes_float16: int
    overlap_after: dict[int, float]


def streams(artefact: Artefact, log: Path, users: int, steps: int) -> tuple[Tensor, Tensor]:
    """Items and times, (users, steps + 1) each: the last one only says when is asked.

    Raises CommandError where the log has too few interactions with items of the model.
    """
    index = {item: i for i, item in enumerate(artefact.items.ids, 1)}
    frame = read_log(log).frame
    histories: dict[str, list[tuple[int, int]]] = {}
    for user, item, time in frame.iter_rows():
        if item in index:
            histories.setdefault(user, []).append((index[item], time))
    longest = iter(sorted(histories.values(), key=len, reverse=True))
    items = np.zeros((users, steps + 1), np.int64)
    times = np.full((users, steps + 1), UNKNOWN_TIME, np.int64)
    for row in range(users):
        filled, shift, last = 0, 0, UNKNOWN_TIME
        while filled <= steps:
            history = next(longest, None)
            if history is None:
                raise CommandError(
                    f"{log}: too few interactions with items of {artefact.folder} for {users} "
                    f"users of {steps + 1} each: take fewer --users or --steps"
                )
            first = next((time for _, time in history if time != UNKNOWN_TIME), UNKNOWN_TIME)
            if last != UNKNOWN_TIME and first != UNKNOWN_TIME:
                shift = last + DAY_MS - first
            for item, time in history[: steps + 1 - filled]:
                items[row, filled] = item
                if time != UNKNOWN_TIME:
                    times[row, filled] = last = time + shift
                filled += 1
    return torch.from_numpy(items), torch.from_numpy(times)


def compare(model: TiM4Rec, items: Tensor, times: Tensor, every: int, k: int) -> Agreement:
    """Runs both states through `items` and `times` (users, steps + 1).

    Raises CommandError for a model whose state has nothing to round.
    """
    layout = model.state_layout
    if layout.nbytes("float16") == layout.nbytes("float32"):
        raise CommandError(
            "the state of this model is its window, whole numbers only: float16 changes nothing"
        )
    users, steps = items.shape[0], items.shape[1] - 1
    k = min(k, model.config.n_items)
    if not 0 < every < steps:
        raise CommandError(f"--every {every}: must be from 1 to below --steps {steps}")
    exact, rounded = model.new_state(users), model.new_state(users)
    overlaps: list[Tensor] = []
    same: list[Tensor] = []
    spreads: list[Tensor] = []
    after: dict[int, list[Tensor]] = {n: [] for n in AFTER if n < every}
    largest, refused = 0.0, 0
    for step in range(steps):
        exact = model.step(items[:, step], times[:, step], exact)
        rounded = model.step(items[:, step], times[:, step], rounded)
        since = (step + 1) % every
        if since == 0:
            fits = layout.fits(rounded, "float16").nonzero()[:, 0]
            rounded.write(fits, layout.rounded(rounded.rows(fits), "float16"))
            refused += users - len(fits)
        if step + 1 < every:
            continue
        asked = times[:, step + 1]
        truth = model.scores(model.query(exact, asked))[:, 1:]
        other = model.scores(model.query(rounded, asked))[:, 1:]
        best, found = truth.topk(k).indices, other.topk(k).indices
        overlap = (best[:, :, None] == found[:, None]).any(2).float().mean(1)
        overlaps.append(overlap)
        same.append((best == found).all(1).float())
        spreads.append(truth.std(1))
        largest = max(largest, (truth - other).abs().max().item())
        if since in after:
            after[since].append(overlap)
    every_overlap = torch.cat(overlaps)
    header = len(layout.pack(layout.new(1))[0]) - layout.nbytes()
    return Agreement(
        users=users,
        steps=steps,
        every=every,
        k=k,
        lists=len(every_overlap),
        overlap=every_overlap.mean().item(),
        same_order=torch.cat(same).mean().item(),
        worst_overlap=every_overlap.min().item(),
        largest_difference=largest,
        typical_spread=torch.cat(spreads).mean().item(),
        refused=refused,
        bytes_float32=header + layout.nbytes("float32"),
        bytes_float16=header + layout.nbytes("float16"),
        overlap_after={n: torch.cat(found).mean().item() for n, found in after.items()},
    )


def table(result: Agreement) -> Table:
    shown = Table(
        title=f"float16 snapshots every {result.every} steps, against float32", title_justify="left"
    )
    shown.add_column("")
    shown.add_column("", justify="right")
    rows = {
        "users x steps": f"{result.users} x {result.steps:,}",
        "lists compared": f"{result.lists:,}",
        f"overlap@{result.k}": f"{result.overlap:.4%}",
        f"same order@{result.k}": f"{result.same_order:.4%}",
        f"worst overlap@{result.k}": f"{result.worst_overlap:.0%}",
        **{f"overlap {n} steps after": f"{v:.4%}" for n, v in result.overlap_after.items()},
        "largest score difference": f"{result.largest_difference:.2e}",
        "spread of one list's scores": f"{result.typical_spread:.2e}",
        "states that do not fit": f"{result.refused}",
        "bytes of a state, float32": f"{result.bytes_float32:,}",
        "bytes of a state, float16": f"{result.bytes_float16:,}",
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def main(
    artefact: Annotated[Path, typer.Argument(help="A trained model.")],
    log: Annotated[Path, typer.Argument(help="An interaction log, such as it was trained on.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users side by side.")] = 16,
    steps: Annotated[int, typer.Option(min=2, help="Interactions of each.")] = 1_000,
    every: Annotated[int, typer.Option(min=1, help="Steps between roundings.")] = 64,
    k: Annotated[int, typer.Option(min=1, help="Length of the lists.")] = 10,
) -> None:
    """Measure what float16 snapshots cost: agreement of the best items, and bytes saved."""
    with errors_without_traceback(), torch.inference_mode():
        loaded = load_artefact(artefact)
        items, times = streams(loaded, log, users, steps)
        result = compare(loaded.model, items, times, every, k)
        out.print(table(result))
        if json_file is not None:
            figures = {"model": loaded.identity, **asdict(result)}
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

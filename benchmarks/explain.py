"""How well cheap explanations agree with leaving interactions out, and what each costs.

    python -m benchmarks.explain artefacts/ml-100k data/ml-100k/interactions.csv.gz \
        --json explain.json

For users of the log, asked at the time of their last interaction and without it in the history:
by how much did each of the newest interactions raise the score of each of the ten best items?
The reference computes the score anew without each. Compared with it:

    gradient   gradient of the score with regard to the interaction's input, times the input
    cosine     of the interaction's item with the recommended one
    newest     the later the more
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from cli.console import CommandError, err, errors_without_traceback, out
from model import UNKNOWN_TIME, TiM4Rec
from model.artefact import Artefact, load_artefact
from model.attribution import left_out
from training.interactions import read_log

LEAST = 8
"""Shorter histories have too few interactions to be ranked."""
Case = tuple[Tensor, Tensor, int]
"""Items and times of a history, (L) each, and the moment asked for."""


def cases(artefact: Artefact, log: Path, users: int) -> list[Case]:
    index = {item: i for i, item in enumerate(artefact.items.ids, 1)}
    histories: dict[str, list[tuple[int, int]]] = {}
    for user, item, at in read_log(log).frame.iter_rows():
        if item in index and at != UNKNOWN_TIME:
            histories.setdefault(user, []).append((index[item], at))
    long = [history for history in histories.values() if len(history) > LEAST]
    if not long:
        raise CommandError(f"{log}: no user has more than {LEAST} interactions with known items")
    chosen = np.random.default_rng(0).permutation(len(long))[:users]
    found = []
    for place in chosen.tolist():
        items, times = torch.tensor(long[place]).T
        found.append((items[:-1], times[:-1], int(times[-1])))
    return found


def gradient(model: TiM4Rec, case: Case, items_K: Tensor, most: int) -> Tensor:
    items, times, at = case
    inputs: list[Tensor] = []

    def captured(module: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
        inputs.append(arguments[0].detach().requires_grad_())
        return (inputs[0],)

    handle = model.in_norm.register_forward_pre_hook(captured)
    try:
        with torch.enable_grad():
            count = len(items_K)
            asked = torch.full_like(times, at).expand(count, -1)
            queries = model(items.expand(count, -1), times.expand(count, -1), asked)[:, -1]
            total = (queries * model.item_embedding.weight[items_K]).sum()
            (slope,) = torch.autograd.grad(total, inputs[0])
    finally:
        handle.remove()
    parts: Tensor = (slope * inputs[0].detach()).sum(-1).T
    return parts[-most:]


def ways(model: TiM4Rec, most: int) -> dict[str, Callable[[Case, Tensor], Tensor]]:
    vectors = model.item_embedding.weight.detach()
    unit = normalize(vectors, dim=1)

    def reference(case: Case, items_K: Tensor) -> Tensor:
        return left_out(model, case[0], case[1], vectors[items_K], case[2], most)

    def newest(case: Case, items_K: Tensor) -> Tensor:
        count = min(most, len(case[0]))
        return torch.arange(float(count))[:, None].expand(-1, len(items_K))

    return {
        "left out": reference,
        "gradient": lambda case, items: gradient(model, case, items, most),
        "cosine": lambda case, items: unit[case[0][-most:]] @ unit[items].T,
        "newest": newest,
    }


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation of each column, (K)."""
    a, b = (x.argsort(0).argsort(0).double() for x in (one, other))
    a, b = (x - x.mean(0) for x in (a, b))
    correlation: Tensor = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    return correlation


def measure(artefact: Artefact, chosen: list[Case], most: int, k: int) -> dict[str, Any]:
    model = artefact.model
    figures: dict[str, dict[str, list[float]]] = {}
    for case in chosen:
        items, times, at = case
        lengths = torch.tensor([len(items)])
        state = model.prefill(items[None], times[None], lengths, model.new_state(1))
        best = model.scores(model.query(state, torch.tensor([at])))[0].topk(k).indices
        reference = None
        for name, way in ways(model, most).items():
            started = time.perf_counter()
            found = way(case, best)
            row = figures.setdefault(name, {})
            row.setdefault("ms", []).append(1000 * (time.perf_counter() - started))
            reference = found if reference is None else reference
            row.setdefault("spearman", []).extend(spearman(found, reference).tolist())
            first, three = found.abs().argmax(0), found.abs().topk(3, dim=0).indices
            truth = reference.abs().topk(3, dim=0).indices
            row.setdefault("same_first", []).extend((first == truth[0]).double().tolist())
            shared = (three[:, None] == truth[None]).any(0).double().mean(0)
            row.setdefault("shared_of_three", []).extend(shared.tolist())
    return {
        name: {figure: float(_typical(figure, np.array(values))) for figure, values in row.items()}
        for name, row in figures.items()
    }


def _typical(figure: str, values: NDArray[np.float64]) -> float:
    return float(np.median(values) if figure == "ms" else values.mean())


def main(
    artefact: Annotated[Path, typer.Argument(help="A trained model.")],
    log: Annotated[Path, typer.Argument(help="An interaction log, such as it was trained on.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="How many users.")] = 200,
    events: Annotated[int, typer.Option(min=3, help="Newest interactions considered.")] = 50,
    k: Annotated[int, typer.Option(min=1, help="Items explained.")] = 10,
) -> None:
    """Measure explanations against leaving interactions out."""
    with errors_without_traceback(), torch.no_grad():
        torch.set_num_threads(1)
        loaded = load_artefact(artefact)
        loaded.model.requires_grad_(False)
        chosen = cases(loaded, log, users)
        rows = measure(loaded, chosen, events, k)
        shown = Table(title=f"{len(chosen)} users, {k} items, newest {events} interactions")
        for column in ("", "rank correlation", "same first", "of three", "ms, median"):
            shown.add_column(column, justify="right" if column else "left")
        for name, row in rows.items():
            shown.add_row(
                name,
                *(f"{row[c]:.3f}" for c in ("spearman", "same_first", "shared_of_three", "ms")),
            )
        out.print(shown)
        if json_file is not None:
            figures = {"model": loaded.identity, "users": len(chosen), "k": k, "events": events}
            json_file.write_text(json.dumps(figures | {"ways": rows}, indent=2) + "\n", "utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

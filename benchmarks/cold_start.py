"""How well items do that the model was not trained on, by the vector that is made for them.

    python -m benchmarks.cold_start artefacts/ml-100k data/ml-100k/interactions.csv.gz \
        --json cold_start.json

Every item is new once: the items are dealt into five parts, and for each part its items lose their
vectors and are taken out of all histories. Of each user the last two interactions are to be found:
by the state before them, in the list of all items (`all`), and in that of the new ones (`new`).
The vectors that new items get:

    average     the mean of all others
    means       the mean of their categories' means
    as long     the same, as long as the vectors of others are on average
    ridge       by a ridge regression from categories to vectors, with three penalties; the service
                has one of 10
    trained     their own: what training on them gives
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table

from cli.console import CommandError, err, errors_without_traceback, out
from model import UNKNOWN_TIME
from model.artefact import Artefact, load_artefact
from service.catalogue.cold_start import summed
from service.catalogue.turns import at_once
from training.interactions import read_log
from training.metrics import ranking_metrics

PARTS, TARGETS, BATCH, LATEST = 5, 2, 128, 200
PENALTIES = (1.0, 10.0, 100.0)
Vectors = NDArray[np.float32]
Made = Callable[[NDArray[np.int64]], Vectors]
"""From new rows to their vectors."""


def ways(table: Vectors, one_hot: NDArray[np.float32], new: NDArray[np.int64]) -> dict[str, Made]:
    """The ways to make vectors, knowing those of all rows but `new`.

    Args:
        table, one_hot: (V + 1, D) vectors and (V + 1, C) categories.
    """
    known = np.setdiff1d(np.arange(1, len(table)), new)
    average = table[known].mean(0)
    names = [[str(place) for place in np.flatnonzero(own)] for own in one_hot]

    def means(rows: NDArray[np.int64]) -> Vectors:
        of_each = [table[known[one_hot[known, place] > 0]] for place in range(one_hot.shape[1])]
        each = np.stack([own.mean(0) if len(own) else average for own in of_each])
        return np.stack([each[one_hot[row] > 0].mean(0) for row in rows])

    def as_long(rows: NDArray[np.int64]) -> Vectors:
        found, length = means(rows), np.linalg.norm(table[known], axis=1).mean()
        longer: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True) * length
        return longer

    def ridge(penalty: float) -> Made:
        cold = at_once(summed(table[known], lambda row: names[known[row - 1]], penalty))()
        return lambda rows: np.stack([cold.vector((), names[row]) for row in rows])

    return {
        "average": lambda rows: np.tile(average, (len(rows), 1)),
        "means": means,
        "as long": as_long,
        **{f"ridge {penalty:g}": ridge(penalty) for penalty in PENALTIES},
        "trained": lambda rows: table[rows],
    }


def measured(artefact: Artefact, log: Path) -> dict[str, dict[str, list[int]]]:
    """For each way the ranks of all targets, ties against them: in `all`, in `new`."""
    items, model = artefact.items, artefact.model
    if items.categories is None:
        raise CommandError(f"{artefact.folder}: its items have no categories")
    names = sorted({name for own in items.categories for name in own})
    one_hot = np.zeros((len(items) + 1, len(names)), np.float32)
    for row, own in enumerate(items.categories, 1):
        one_hot[row, [names.index(name) for name in own]] = 1
    table = model.item_embedding.weight.detach().numpy()
    index = {item: row for row, item in enumerate(items.ids, 1)}
    histories = defaultdict[str, list[int]](list)
    for user, item, _ in read_log(log).frame.iter_rows():
        if item in index:
            histories[user].append(index[item])
    dealt = np.random.default_rng(0).permutation(len(items)) % PARTS
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"all": [], "new": []})
    for part in range(PARTS):
        new = 1 + np.flatnonzero(dealt == part)
        is_new = np.zeros(len(items) + 1, np.bool_)
        is_new[new] = True
        asked = []
        for history in histories.values():
            for place in range(len(history) - TARGETS, len(history)):
                before = [row for row in history[:place] if not is_new[row]][-LATEST:]
                if place > 0 and is_new[history[place]] and before:
                    asked.append((before, history[place]))
        queries = torch.cat(
            [_queries(artefact, asked[i : i + BATCH]) for i in range(0, len(asked), BATCH)]
        )
        wanted = torch.tensor([target for _, target in asked])
        for way, make in ways(table, one_hot, new).items():
            own_table = table.copy()
            own_table[new] = make(new)
            scores = queries @ torch.from_numpy(own_table).T
            scores[:, 0] = -torch.inf
            aim = scores.gather(1, wanted[:, None])
            found[way]["all"] += (scores >= aim).sum(1).tolist()
            found[way]["new"] += (scores[:, torch.from_numpy(new)] >= aim).sum(1).tolist()
    return found


def _queries(artefact: Artefact, asked: list[tuple[list[int], int]]) -> torch.Tensor:
    lengths = torch.tensor([len(before) for before, _ in asked])
    rows = torch.zeros(len(asked), int(lengths.max()), dtype=torch.long)
    for i, (before, _) in enumerate(asked):
        rows[i, : len(before)] = torch.tensor(before)
    times, model = torch.full_like(rows, UNKNOWN_TIME), artefact.model
    return model.query(model.prefill(rows, times, lengths, model.new_state(len(asked))))


def main(
    artefact: Annotated[Path, typer.Argument(help="A trained model whose items have categories.")],
    log: Annotated[Path, typer.Argument(help="The interaction log that it was trained on.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure the vectors made for items that the model was not trained on."""
    with errors_without_traceback(), torch.inference_mode():
        loaded = load_artefact(artefact)
        ranks = measured(loaded, log)
        rows = {
            way: {name: ranking_metrics(np.array(own)) for name, own in lists.items()}
            for way, lists in ranks.items()
        }
        targets = len(ranks["trained"]["all"])
        shown = Table(title=f"{targets:,} targets, {len(loaded.items):,} items")
        shown.add_column("")
        for name in ("all", "new"):
            for metric in ("HR@10", "NDCG@10", "HR@50"):
                shown.add_column(f"{name}: {metric}", justify="right")
        for way, row in rows.items():
            figures = [row[n][m] for n in ("all", "new") for m in ("HR@10", "NDCG@10", "HR@50")]
            shown.add_row(way, *(f"{figure:.4f}" for figure in figures))
        out.print(shown)
        if json_file is not None:
            written = {"model": loaded.identity, "targets": targets, "ways": rows}
            json_file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

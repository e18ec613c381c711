"""Which measure of similarity says best what people interact with next.

    python -m benchmarks.similar artefacts/ml-100k data/ml-100k/interactions.csv.gz \
        --json similar.json

Of each user's two latest interactions, which the model was not trained on, the first is the item
asked about and the second the one to be found among all others. The measures:

    cosine     of the two items' vectors
    product    of the two items' vectors
    next       the model's score for the second after the first alone, at no known time
    popular    how often the second was in training: what a list without the first item gets
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
from training.metrics import ranking_metrics

BATCH = 256
Measure = Callable[[Tensor], Tensor]
"""From items (B) to the scores (B, V + 1) of all items."""


def held_out(artefact: Artefact, log: Path) -> tuple[Tensor, Tensor]:
    """The last but one and the last item of each user, (U) each, where the model knows both."""
    index = {item: i for i, item in enumerate(artefact.items.ids, 1)}
    latest: dict[str, tuple[int, int]] = {}
    for user, item, _ in read_log(log).frame.iter_rows():
        latest[user] = latest.get(user, (0, 0))[1], index.get(item, 0)
    pairs = [pair for pair in latest.values() if all(pair) and pair[0] != pair[1]]
    if not pairs:
        raise CommandError(f"{log}: no user has two interactions with items of {artefact.folder}")
    first, second = torch.tensor(pairs).T
    return first, second


def measures(artefact: Artefact) -> dict[str, Measure]:
    model: TiM4Rec = artefact.model
    vectors = model.item_embedding.weight
    unit = torch.nn.functional.normalize(vectors, dim=1)
    popularity = torch.from_numpy(np.concatenate([[0], artefact.items.popularity])).float()

    def following(items: Tensor) -> Tensor:
        ones, times = torch.ones_like(items), torch.full_like(items[:, None], UNKNOWN_TIME)
        state = model.prefill(items[:, None], times, ones, model.new_state(len(items)))
        return model.query(state) @ vectors.T

    return {
        "cosine": lambda items: unit[items] @ unit.T,
        "product": lambda items: vectors[items] @ vectors.T,
        "next": following,
        "popular": lambda items: popularity.expand(len(items), -1).clone(),
    }


def ranks(measure: Measure, first: Tensor, second: Tensor) -> np.ndarray[tuple[int], np.dtype]:
    """The place of each second item among all but the first, from 1; ties count against it."""
    found = []
    for start in range(0, len(first), BATCH):
        asked, wanted = first[start : start + BATCH], second[start : start + BATCH]
        scores = measure(asked)
        scores[:, 0] = -torch.inf
        scores.scatter_(1, asked[:, None], -torch.inf)
        found.append((scores >= scores.gather(1, wanted[:, None])).sum(1))
    return torch.cat(found).numpy()


def main(
    artefact: Annotated[Path, typer.Argument(help="A trained model.")],
    log: Annotated[Path, typer.Argument(help="The interaction log that it was trained on.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure which similarity of items says best what people interact with next."""
    with errors_without_traceback(), torch.inference_mode():
        loaded = load_artefact(artefact)
        first, second = held_out(loaded, log)
        rows = {
            name: ranking_metrics(ranks(measure, first, second))
            for name, measure in measures(loaded).items()
        }
        shown = Table(title=f"{len(first):,} held-out pairs, {len(loaded.items):,} items")
        shown.add_column("")
        for column in ("HR@10", "NDCG@10", "MRR@10", "HR@50"):
            shown.add_column(column, justify="right")
        for name, row in rows.items():
            shown.add_row(name, *(f"{row[c]:.4f}" for c in ("HR@10", "NDCG@10", "MRR@10", "HR@50")))
        out.print(shown)
        if json_file is not None:
            figures = {"model": loaded.identity, "pairs": len(first), "measures": rows}
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

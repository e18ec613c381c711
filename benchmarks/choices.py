"""What the catalogue costs: to load, to filter, to search; and what a wave costs that filters.

    python -m benchmarks.choices --items 12101 --items 100000 --json choices.json

Items with random vectors, titles of three words and four attributes, on an embedded store. A wave
is 64 recommendations of 10 items, each with 30 items left out; all times are CPU time, medians.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

from cli.console import err, errors_without_traceback, out
from model import ModelConfig, TiM4Rec
from model.artefact import Artefact
from model.items import Items
from service.catalogue.ask import Ask
from service.catalogue.catalogue import Catalogue
from service.catalogue.choice import Choice
from service.catalogue.item_store import ItemStore
from service.catalogue.retrieval import Retrieval
from service.store.client import Store
from service.store.embedded import EmbeddedStore

BATCH, K, HIDDEN, AT_ONCE = 64, 10, 30, 1000
WORDS = ["red", "oak", "sea", "star", "night", "glass", "river", "gold", "silent", "north"]


def cpu_ms(act: Callable[[], object], times: int = 1) -> float:
    """The median of several calls' CPU time, ms."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        act()
        taken.append(time.process_time() - started)
    return 1000 * statistics.median(taken)


async def asked_ms(ask: Callable[[], Awaitable[object]], times: int = 1) -> float:
    """`cpu_ms` of what is waited for."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        await ask()
        taken.append(time.process_time() - started)
    return 1000 * statistics.median(taken)


def record(draw: random.Random) -> bytes:
    title = " ".join(draw.choices(WORDS, k=3))
    attributes = {
        "price": draw.randrange(1000) / 10,
        "brand": f"brand {draw.randrange(200)}",
        "tags": draw.sample(WORDS, 2),
        "sale": True if draw.random() < 0.1 else None,
    }
    said = {"title": f"{title} {draw.randrange(10**6)}", "attributes": attributes}
    return json.dumps(said).encode()


async def waves(retrieval: Retrieval, catalogue: Catalogue, repeats: int) -> dict[str, float]:
    """A wave's time by what it asks."""
    width = retrieval.vectors(np.array([1])).shape[1]
    query = torch.randn(BATCH, width, generator=torch.Generator().manual_seed(1))
    hidden = np.arange(1, HIDDEN + 1, dtype=np.int32)

    def wave(choice: Choice | None = None) -> float:
        asks = [Ask(K, hidden, choice=choice)] * BATCH
        return cpu_ms(lambda: retrieval.answer(query, asks), repeats)

    half = await catalogue.matching("price < 50")
    few = await catalogue.matching('brand = "brand 7"')
    sale = await catalogue.matching("has(sale)")
    view = retrieval.view
    times = {
        "plain": wave(),
        "filter, half of the items": wave(Choice(half)),
        "filter, 1 item in 200": wave(Choice(few)),
        "promotion": wave(Choice(promoted=sale, share=0.2)),
        "diversity": wave(Choice(diversity=0.5)),
    }
    blocked = np.random.default_rng(0).random(view.size + 1) < 0.1
    retrieval.view = replace(view, blocked=blocked)
    some_blocked = wave()
    retrieval.view = view
    return {"plain": times.pop("plain"), "plain, 1 item in 10 hidden": some_blocked, **times}


async def measured(size: int, repeats: int) -> dict[str, float]:
    model = TiM4Rec(ModelConfig(n_items=size)).eval()
    ids, draw = [f"item{n}" for n in range(size)], random.Random(0)
    items = Items(ids, np.arange(size, dtype=np.int64))
    artefact = Artefact(model, items, {}, "benchmark", Path())
    retrieval = Retrieval(model.item_embedding.weight, items)
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedStore(Path(folder), fsync="everysec") as url,
    ):
        async with Store(url, timeout_s=30) as store:
            written = ItemStore(store)
            for start in range(0, size, AT_ONCE):
                await written.write({item: record(draw) for item in ids[start : start + AT_ONCE]})
            catalogue = Catalogue(artefact, written, retrieval)
            started = time.process_time()
            await catalogue.records.refresh()
            found["load, ms"] = 1000 * (time.process_time() - started)
            text = 'price < 20 and brand in ("brand 1", "brand 2") and not has(sale)'
            found["first filter on three attributes, ms"] = await asked_ms(
                lambda: catalogue.matching(text)
            )
            texts = iter(f"price < {n} and not has(sale)" for n in range(1000))
            another = await asked_ms(lambda: catalogue.matching(next(texts)), 50)
            found["another filter on them, ms"] = another
            found["a filter again, ms"] = await asked_ms(lambda: catalogue.matching(text), 50)
            words = " or ".join(f'id < "z{n}"' for n in range(165))
            found["165 comparisons of ids, ms"] = await asked_ms(lambda: catalogue.matching(words))

            def search(words: str) -> Awaitable[object]:
                return catalogue.listed(words, limit=20)

            found["first search, ms"] = await asked_ms(lambda: search("x"))
            found["search, 20 found, ms"] = await asked_ms(lambda: search("night"), 50)
            found["search, none found, ms"] = await asked_ms(lambda: search("nowhere"), 50)
            await catalogue.records.write({"item1": record(draw)})
            found["search after a change, ms"] = await asked_ms(lambda: search("night"))
            with torch.inference_mode():
                for name, taken in (await waves(retrieval, catalogue, repeats)).items():
                    found[f"wave: {name}, ms"] = taken
    return found


def main(
    items: Annotated[list[int] | None, typer.Option(help="Sizes of the catalogue.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Waves of each kind.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure what the catalogue costs, and lists that are filtered, promoted and spread."""
    torch.set_num_threads(1)
    with errors_without_traceback():
        sizes = items or [12_101, 100_000]
        columns = {size: asyncio.run(measured(size, repeats)) for size in sizes}
        shown = Table()
        shown.add_column("")
        for size in sizes:
            shown.add_column(f"{size:,} items", justify="right")
        for name in columns[sizes[0]]:
            shown.add_row(name, *(f"{columns[size][name]:,.2f}" for size in sizes))
        out.print(shown)
        if json_file is not None:
            json_file.write_text(json.dumps(columns, indent=2) + "\n", encoding="utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

"""What a CPU needs for the scores of a whole catalogue, and for the best of them, by its size.

    python -m benchmarks.exact_search --items 1000 --items 100000 --json runs/exact_search.json

Scores of queries of 64 numbers: by numpy's BLAS on a transposed copy of the vectors, one query at a
time and all at once, and by torch on the vectors as the model has them. The best 10, 50 items
being hidden: by Numba (`service.catalogue.numba_top`), and by torch's masking and topk. One thread;
the median of `--repeats` calls. Measure on a quiet machine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cli.console import out
from service.catalogue import numba_top

WIDTH, K, HIDDEN = 64, 10, 50
SIZES, QUERIES = [1000, 3000, 10_000, 30_000, 100_000, 300_000], [1, 2, 4, 8, 16, 64]


def median_us(act: Callable[[], object], repeats: int) -> float:
    act()  # compiled, and in the caches
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        taken.append(time.perf_counter() - started)
    return 1e6 * statistics.median(taken)


@torch.inference_mode()
def measured(size: int, queries: int, repeats: int) -> dict[str, float]:
    """Microseconds of each way."""
    draw = np.random.default_rng(0)
    vectors_VD = draw.standard_normal((size + 1, WIDTH)).astype(np.float32)
    components_DV = np.ascontiguousarray(vectors_VD.T)
    query_BD = draw.standard_normal((queries, WIDTH)).astype(np.float32)
    hidden = [draw.integers(1, size + 1, HIDDEN).astype(np.int32) for _ in range(queries)]
    table, query = torch.from_numpy(vectors_VD), torch.from_numpy(query_BD)
    scores_BV: NDArray[np.float32] = query_BD @ components_DV
    at = torch.arange(queries).repeat_interleave(HIDDEN), torch.from_numpy(np.concatenate(hidden))

    def torch_top() -> None:
        scores = torch.from_numpy(scores_BV)
        scores[:, 0] = -torch.inf
        scores[at[0], at[1].long()] = -torch.inf
        scores.topk(K, dim=1)

    ways: dict[str, Callable[[], object]] = {
        "scores, each": lambda: [query_D @ components_DV for query_D in query_BD],
        "scores, at once": lambda: np.matmul(query_BD, components_DV),
        "scores, torch": lambda: query @ table.T,
        "top, numba": lambda: numba_top.top(scores_BV, hidden, None, 0.0, [K] * queries),
        "top, torch": torch_top,
    }
    return {name: median_us(way, repeats) for name, way in ways.items()}


def main(
    items: Annotated[list[int] | None, typer.Option(min=HIDDEN, help="Sizes.")] = None,
    queries: Annotated[list[int] | None, typer.Option(min=1, help="Queries at once.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each.")] = 200,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Compare ways to search a whole catalogue by its size."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = [
            {"items": size, "queries": count, **measured(size, count, repeats)}
            for size in items or SIZES
            for count in queries or QUERIES
        ]
    table = Table(*(f"{name}, µs" if "," in name else name for name in rows[0]), box=None)
    for row in rows:
        table.add_row(*(f"{value:,.0f}" for value in row.values()))
    out.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
